DEFAULT_LIMITS: dict[str, int]
"""What a Memslots allows if neither its maker nor its backend says otherwise, by argument."""

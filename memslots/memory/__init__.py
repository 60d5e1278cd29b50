"""Guest memory: the host memory behind the slots, access by guest address, snapshots."""

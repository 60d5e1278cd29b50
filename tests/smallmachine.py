"""The limits of a machine so small that calls collide."""

MAX_SLOTS, SPACES, MAX_GFN, MAX_HVA = 6, 2, 160, (1 << 47) - 4096

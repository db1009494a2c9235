"""What is held out: one rule for strings and scenes, one for data that has an index.

The rule is a property of the content, so training and held-out data are disjoint however they are generated.
"""

import hashlib

HELD_OUT_FONT = "OpenSans-Regular"


def is_held_out(key: str) -> bool:
    """One content in ten is held out, chosen by its hash."""
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def is_held_out_index(index: int) -> bool:
    """For the 5,000 hand-written digits: each fifth is held out."""
    return index % 5 == 0

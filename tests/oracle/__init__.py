"""Parity oracles: tiny checkpoints in the published layout, and what the reference code answers on them.

Nothing here imports fovea, so an oracle cannot share a mistake with the engine it judges.
"""

import os

# Read by huggingface_hub when it is first imported: everything comes from local folders, so no look-up may leave.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

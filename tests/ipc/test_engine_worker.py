"""The engine's process, as far as it can be looked at from inside; test_supervisor has the rest."""

from __future__ import annotations

import gc

from fovea.ipc.engine_worker import keep_for_good


def test_what_is_loaded_is_not_looked_through_for_garbage_again() -> None:
    loaded = [[number] for number in range(1000)]
    try:
        keep_for_good()
        assert gc.get_freeze_count() > len(loaded)
        assert not any(one is loaded for one in gc.get_objects())
    finally:
        gc.unfreeze()

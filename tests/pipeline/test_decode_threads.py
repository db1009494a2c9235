"""Who decodes, and who gets help."""

from __future__ import annotations

from fovea.pipeline.decode_threads import DecodeThreads


def test_only_a_picture_that_is_alone_gets_helpers() -> None:
    threads = DecodeThreads(1, 2)
    with threads.working() as helpers:
        assert helpers is threads.pool()
        with threads.working() as others:
            assert others is None
    with threads.working() as again:
        assert again is helpers


def test_work_that_fails_is_no_longer_in_the_way() -> None:
    threads = DecodeThreads(1, 2)
    try:
        with threads.working():
            raise ValueError
    except ValueError:
        pass
    with threads.working() as helpers:
        assert helpers is not None


def test_nobody_helps_where_one_thread_is_wanted() -> None:
    with DecodeThreads(4, 1).working() as helpers:
        assert helpers is None

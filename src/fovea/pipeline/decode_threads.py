"""The threads in which pictures are decoded, and which help with a picture that is the only one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


class DecodeThreads:
    """They start with the first request that needs them. Safe in threads.

    num_threads: how many pictures of one request are decoded at a time.
    num_helpers: how many help with a picture that is alone.
    """

    def __init__(self, num_threads: int, num_helpers: int) -> None:
        self.num_threads = num_threads
        self._num_helpers = num_helpers
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = 0
        self._num_working = 0

    def pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool_pid != os.getpid():  # threads do not survive a fork
                self._pool = ThreadPoolExecutor(
                    max(self.num_threads, self._num_helpers), thread_name_prefix="fovea-decode"
                )
                self._pool_pid = os.getpid()
            return self._pool

    @contextmanager
    def working(self) -> Iterator[ThreadPoolExecutor | None]:
        """Around work on one picture. Gives threads that may help, if no other picture is being worked on: where there
        are many, threads that help with one take more time from the others than they save."""
        with self._lock:
            self._num_working += 1
            is_alone = self._num_working == 1
        try:
            yield self.pool() if is_alone and self._num_helpers > 1 else None
        finally:
            with self._lock:
                self._num_working -= 1

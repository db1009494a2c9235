"""Asks a server how it is, again and again, from a process of its own: a busy client would measure itself.

    python -m benchmarks.load.probe PORT PATH PERIOD_S

Until its input ends; then it writes one line for each try to stdout, "STATUS SECONDS" (status 0: no answer).
"""

from __future__ import annotations

import select
import socket
import sys
import time

TIMEOUT_S = 10.0


def probe(port: int, path: str) -> tuple[int, float]:
    """Status and seconds of one request on a connection of its own, connecting included."""
    started = time.perf_counter()
    status = 0
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            received = b""
            while block := connection.recv(65536):
                received += block
            status = int(received[9:12] or 0)
    except OSError:
        pass
    return status, time.perf_counter() - started


def main(argv: list[str]) -> None:
    port, path, period_s = int(argv[1]), argv[2], float(argv[3])
    tries = []
    due = time.perf_counter()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
        tries.append(probe(port, path))
        due = max(due + period_s, time.perf_counter())
    print("\n".join(f"{status} {seconds:.6f}" for status, seconds in tries))


if __name__ == "__main__":
    main(sys.argv)

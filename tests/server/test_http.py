"""The wire: limits, deadlines, framing and closing, through raw sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fovea.core.errors import InvalidOptionError
from fovea.core.server_config import ServerConfig
from fovea.server.http import Serve
from tests.server.wire import Server, get, post, run, serving, until

CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"
MALFORMED = {
    "obs-fold": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\n 2\r\n\r\n",
    "bare LF": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "bare LF in the middle": b"GET /health HTTP/1.1\r\nHost: localhost\nX-A: 1\r\n\r\n",
    "bare CR": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r2\r\n\r\n",
    "NUL": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: \0\r\n\r\n",
    "blank before colon": b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "name not ASCII": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-\xe9: 1\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
    "length beside chunks": post(b"{}", CHUNKED),
    "chunks, then identity": get("/echo", JSON, "Transfer-Encoding: chunked, identity", method="POST"),
    "xchunked": get("/echo", JSON, "Transfer-Encoding: xchunked", method="POST"),
    "chunked twice": get("/echo", JSON, CHUNKED, CHUNKED, method="POST"),
    "chunks in HTTP/1.0": b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": get("/echo", JSON, "Content-Length: 2", "Content-Length: 2", method="POST") + b"{}",
    "listed lengths": get("/echo", JSON, "Content-Length: 2, 2", method="POST") + b"{}",
    "negative length": get("/echo", JSON, "Content-Length: -2", method="POST") + b"{}",
    "length in hex": get("/echo", JSON, "Content-Length: 0x2", method="POST") + b"{}",
}  # fmt: skip
BAD_CHUNKS = {
    "endless size": b"FFFFFFFFFFFFFFFFFFFFFFFF\r\n",
    "negative size": b"-1\r\n",
    "size in hex notation": b"0x5\r\nhello\r\n",
    "no line end after data": b"2\r\n{}XX0\r\n\r\n",
    "huge extension": b"2;" + b"a" * 1024 * 1024 + b"\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_request_that_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(data: bytes) -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(data + get("/health"))
        reply = await client.reply()
        assert reply.status == 400
        assert reply.error["type"] == "invalid_request_error"
        assert reply.headers["connection"] == "close"
        assert await client.is_ended()
        line = await server.line()
        assert (line["status"], line["id"]) == (400, reply.headers["x-request-id"])
        assert len(server.lines) == 1
        assert not server.seen.bodies

    run(test)


@pytest.mark.parametrize("chunk", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_a_body_in_broken_chunks_is_refused_with_one_answer_and_one_line(chunk: bytes) -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get("/echo", JSON, CHUNKED, method="POST") + chunk)
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (400, "invalid_http")
        assert await client.is_ended()
        assert (await server.line())["status"] == 400
        assert len(server.lines) == 1
        assert not server.seen.bodies

    run(test)


def test_one_byte_chunks_are_served_within_a_second_of_work() -> None:
    async def test(server: Server) -> None:
        body = b'{"text": "' + b"a" * 65_537 + b'"}'
        data = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        before = time.process_time()
        reply = await server.ask(get("/echo", JSON, CHUNKED, method="POST") + data)
        assert (reply.status, len(reply.body)) == (200, 65_537)
        assert time.process_time() - before < 5.0

    run(test)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/health", "X-A: " + "a" * 17 * 1024), 431),
        (get("/health", *["X-A: 1"] * 100), 431),
        (get("/health", *["X-A: 1"] * 10_000), 431),
        (b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 1024 * 1024, 431),
        (get("/" + "a" * 8 * 1024), 414),
        (b"GET /" + b"a" * 1024 * 1024, 414),
        (b"a" * 1024 * 1024, 431),
        (get("/health", *["X-A: 1"] * 98), 200),
        (get("/health", "X-A: " + "a" * 15 * 1024), 200),
        (get("/health?" + "a" * 8000), 200),
    ],
    ids=["17 KiB", "101", "10,000", "endless header", "long URL", "endless URL", "endless line", "99", "15 KiB", "URL"],
)
def test_headers_have_a_size_a_number_and_a_length_of_the_address(data: bytes, status: int) -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(data)
        reply = await client.reply()
        assert reply.status == status
        if status != 200:
            assert reply.error["code"] == {431: "headers_too_large", 414: "uri_too_long"}[status]
            assert await client.is_ended()

    run(test)


def test_slow_headers_meet_an_absolute_deadline() -> None:
    """A byte now and then does not buy time."""

    async def test(server: Server) -> None:
        client = await server.connect()
        began = time.monotonic()

        async def drip() -> None:
            for byte in get("/health", "X-A: " + "a" * 1000):
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert 0.2 < time.monotonic() - began < 5.0
        dripping.cancel()
        assert (await server.line())["status"] == 408

    run(test, header_timeout_s=0.3)


def test_a_connection_that_never_asks_is_closed_without_a_word() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        assert await client.is_ended()
        assert not server.lines

    run(test, header_timeout_s=0.2)


def test_the_deadline_counts_anew_for_each_request_of_a_connection() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        for _ in range(4):
            await client.send(get())
            assert (await client.reply()).status == 200
            await asyncio.sleep(0.2)
        await client.send(get()[:-2])
        assert (await client.reply()).status == 408

    run(test, header_timeout_s=0.4, keep_alive_s=5.0)


def test_an_idle_connection_ends_without_a_reset() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get())
        assert (await client.reply()).status == 200
        assert await client.is_ended()
        await client.send(get())  # too late: unanswered, but no error
        assert await client.is_ended()

    run(test, keep_alive_s=0.2)


def test_a_slow_body_meets_an_absolute_deadline() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get("/echo", JSON, "Content-Length: 1000", method="POST"))

        async def drip() -> None:
            for _ in range(1000):
                await client.send(b" ")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")
        assert await client.is_ended()
        dripping.cancel()
        assert len(server.lines) == 1

    run(test, body_timeout_s=0.3)


def test_a_client_that_is_refused_while_it_uploads_reads_the_answer() -> None:
    """Without reading on, the reset would overtake the answer: checked here with an upload in full flow."""

    async def test(server: Server) -> None:
        for _ in range(10):
            client = await server.connect()
            body = b"x" * 8 * 1024 * 1024
            sending = asyncio.create_task(client.send(post(body)))
            reply = await client.reply()
            assert (reply.status, reply.error["code"]) == (413, "content_too_large")
            await sending
            assert await client.is_ended()
            client.close()
        assert not server.seen.bodies

    run(test, max_body_bytes=1024)


def test_chunks_are_counted_while_they_come() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get("/echo", JSON, CHUNKED, method="POST"))
        sending = asyncio.create_task(client.send(b"400\r\n" + b" " * 1024 + b"\r\n" + b"2\r\n{}\r\n0\r\n\r\n"))
        assert (await client.reply()).status == 413
        await sending

    run(test, max_body_bytes=1024)


@pytest.mark.parametrize("size", [b"FFFFFFFFFFFFFFFF", b"FFFFFFFF;name=value", b"401"])
@pytest.mark.parametrize("data", [b"", b"abc\r\n0\r\n\r\n"], ids=["alone", "with data"])
def test_a_chunk_longer_than_any_body_is_refused_by_the_size_it_announces(size: bytes, data: bytes) -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(get("/echo", JSON, CHUNKED, method="POST") + size + b"\r\n" + data)
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (413, "content_too_large")
        assert "max_body_bytes" in reply.error["message"]
        assert await client.is_ended()
        assert [line["status"] for line in server.lines] == [413]
        assert not server.seen.bodies

    run(test, max_body_bytes=1024)


@pytest.mark.parametrize(("length", "key", "status"), [(40 * 1024**2, "right", 413), (2, "wrong", 401)])
def test_who_waits_for_100_is_refused_without_it(length: int, key: str, status: int) -> None:
    async def test(server: Server) -> None:
        headers = (JSON, f"Content-Length: {length}", "Expect: 100-continue", f"Authorization: Bearer {key}")
        assert (await server.ask(get("/echo", *headers, method="POST"))).status == status

    run(test, api_key=("right",))


def test_who_waits_for_100_gets_it_when_the_body_is_wanted() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        body = b'{"text": "hello"}'
        await client.send(post(body, "Expect: 100-continue").removesuffix(body))
        assert (await client.reply()).status == 100
        await client.send(body)
        assert (await client.reply()).body == b"hello"

    run(test)


def test_pipelined_requests_are_answered_in_order_up_to_a_bad_one() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        asked = [post(b'{"text": "%d"}' % number) for number in range(100)]
        asked[60] = b"nonsense\r\n\r\n"
        await client.send(b"".join(asked))
        for number in range(60):
            assert (await client.reply()).body == b"%d" % number
        assert (await client.reply()).status == 400
        assert await client.is_ended()
        assert len(server.seen.bodies) == 60
        assert len(server.lines) == 61

    run(test)


def test_a_connection_serves_many_requests() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        for number in range(200):
            await client.send(post(b'{"text": "%d"}' % number))
            assert (await client.reply()).body == b"%d" % number
        assert len({line["id"] for line in server.lines}) == 200

    run(test)


def test_a_stalled_reader_is_cut_off_and_holds_little_meanwhile() -> None:
    async def test(server: Server) -> None:
        client = await server.connect(receive_buffer_bytes=4096)
        assert isinstance(client.writer.transport, asyncio.Transport)
        client.writer.transport.pause_reading()
        await client.send(get("/stream"))
        await until(lambda: server.seen.sent > 0)
        began = time.monotonic()
        await until(lambda: server.seen.cancelled == 1)
        assert 0.3 < time.monotonic() - began < 10.0
        assert server.seen.sent * 8000 < 256 * 1024
        line = await server.line()
        assert (line["status"], line["code"]) == (499, "cancelled")
        client.abort()

    run(test, stall_timeout_s=0.5)


def test_a_slow_reader_is_not_a_stalled_one() -> None:
    async def test(server: Server) -> None:
        client = await server.connect(receive_buffer_bytes=4096)
        size = 600_000
        await client.send(post(b'{"size": %d}' % size))
        await asyncio.sleep(0.1)
        reply = asyncio.create_task(client.reply())
        assert len((await reply).body) == size
        assert server.lines[0]["status"] == 200

    run(test, stall_timeout_s=0.5)


@pytest.mark.parametrize("leave", ["close", "reset", "half-close"])
def test_a_client_that_leaves_ends_the_work_for_it(leave: str) -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(post(path="/slow"))
        await asyncio.sleep(0.05)
        if leave == "half-close":
            client.writer.write_eof()
        elif leave == "reset":
            client.abort()
        else:
            client.close()
        await until(lambda: server.seen.cancelled == 1)
        line = await server.line()
        assert (line["status"], line["code"]) == (499, "cancelled")
        assert len(server.lines) == 1
        assert b'fovea:http_requests_total{engine="0",model_name="tiny",status="499"} 1.0' in server.metrics.render()
        assert b"fovea:requests_cancelled_total" in server.metrics.render()

    run(test)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_request() -> None:
    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(post(b'{"text": "hello"}')[:-5])
        await asyncio.sleep(0.05)
        client.close()
        assert (await server.line())["status"] == 499
        assert not server.seen.bodies

    run(test)


def test_a_client_that_leaves_behind_pipelined_requests_is_noticed() -> None:
    """While the next request waits, a server that stops reading would never see the end."""

    async def test(server: Server) -> None:
        client = await server.connect()
        await client.send(post(path="/slow"))
        await asyncio.sleep(0.05)
        await client.send(post() * 10)
        await asyncio.sleep(0.05)
        client.close()
        await until(lambda: server.seen.cancelled == 1)
        assert not server.seen.bodies

    run(test)


def test_stopping_lets_running_answers_end_and_closes_idle_connections() -> None:
    async def whole() -> None:
        async with serving() as server:
            idle = await server.connect()
            await idle.send(get())
            await idle.reply()
            began = time.monotonic()
        assert await idle.is_ended()
        assert time.monotonic() - began < 5.0

    asyncio.run(whole())


def test_a_port_that_is_taken_is_an_error_of_ours() -> None:
    async def whole() -> None:
        async with serving() as server:
            config = ServerConfig(host="127.0.0.1", port=server.port)
            with pytest.raises(InvalidOptionError, match="another program"):
                await Serve(server.serve._uvicorn.app, config).serve()  # type: ignore[arg-type]

    asyncio.run(whole())


def test_a_host_that_does_not_exist_is_an_error_of_ours() -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    with pytest.raises(InvalidOptionError, match="host"):
        asyncio.run(Serve(app, ServerConfig(host="nowhere.invalid")).serve())


STARVED = """
    import asyncio, os, resource, sys
    from tests.server.wire import serving

    async def main():
        async with serving(header_timeout_s=60.0) as server:
            spare = len(os.listdir("/proc/self/fd")) + 8
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, spare))
            print(server.port, flush=True)
            await asyncio.sleep(60)

    asyncio.run(main())
"""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_without_descriptors_the_server_waits_and_recovers() -> None:
    """F17: no busy loop while starved, kept connections work, it says so once, and comes back by itself."""

    def ask(one: socket.socket) -> bytes:
        one.settimeout(10.0)
        one.sendall(get())
        received = b""
        while not received.endswith(b"}"):
            received += one.recv(4096)
        return received

    program = [sys.executable, "-c", textwrap.dedent(STARVED)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = ("127.0.0.1", int(server.stdout.readline()))
            kept = socket.create_connection(address)
            assert b" 200 " in ask(kept)
            greedy = [socket.create_connection(address) for _ in range(20)]
            time.sleep(0.2)
            before = cpu_s(server.pid)
            time.sleep(2.0)
            assert (cpu_s(server.pid) - before) / 2.0 < 0.2
            assert b" 200 " in ask(kept)
            for one in greedy:
                one.close()
            with socket.create_connection(address) as late:
                assert b" 200 " in ask(late)
            kept.close()
        finally:
            server.kill()
        said = server.communicate()[1]
    assert said.count("out of file descriptors") == 1
    assert len(said.splitlines()) < 5, said

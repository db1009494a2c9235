"""Fetching: what is never dialled, what hostile servers can't do, and that nothing stays open.

No packet leaves this machine: names are resolved by fakes, and every server is one of tests/media/web.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fovea.core.config import EngineConfig
from fovea.core.errors import InvalidOptionError, MediaDecodeError, MediaError, MediaLimitError, MediaSourceError
from fovea.media import MediaLimits, UrlSource, load_picture, parse_url, probe_size
from fovea.media.fetch import MAX_ADDRESSES, MAX_HEADERS, FetchPolicy, fetch, fetch_bytes
from tests.media.corpus import LIMITS, encoded_samples
from tests.media.web import LOOPBACK, Server, answer, policy, redirects, says

PNG = encoded_samples()["PNG"]
PUBLIC_ONLY = FetchPolicy(100_000, 20.0)
SECRETS = ("secret", "token", "127.0.0.1:", "Errno", "object at", "Traceback")

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(scope="module")
def _quick_collections() -> Iterator[None]:
    """The garbage collector looks at what these tests make, not at all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_stays_open(_quick_collections: None) -> Iterator[None]:
    """Sockets and threads are as before, and nothing is found unclosed by the garbage collector."""
    before = _open_files()
    yield
    gc.collect()
    _end_look_ups()
    assert _open_files() == before


def _end_look_ups() -> None:
    for thread in threading.enumerate():
        if thread.name == "fovea-look-up":
            thread.join(10)
            assert not thread.is_alive()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


class Names:
    """A resolver that knows some names and counts the questions. A list of lists: one answer after the other."""

    def __init__(self, **known: Sequence[str]) -> None:
        self.known = {name.replace("_", "."): list(addresses) for name, addresses in known.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.known.get(host, [])


def get(
    url: str, rules: FetchPolicy | None = None, names: Names | None = None, tls: ssl.SSLContext | None = None
) -> bytes:
    return asyncio.run(fetch(url, rules or policy(), resolve=names or Names(), tls=tls))


def refused(url: str, rules: FetchPolicy | None = None, names: Names | None = None, **more: Any) -> str:
    """The text of the refusal, which never holds more of the address than the host."""
    with pytest.raises(MediaError) as error:
        get(url, rules, names, **more)
    assert type(error.value) in (MediaSourceError, MediaLimitError)
    text = str(error.value)
    if isinstance(error.value, MediaLimitError):
        assert error.value.code == "media_too_large"
    else:
        failed = "could not be fetched" in text
        assert error.value.code == ("media_fetch_failed" if failed else "media_url_not_allowed")
    assert not [secret for secret in SECRETS if secret in text], text
    assert len(text) < 400
    return text


@pytest.fixture
def never_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial(*_: object) -> None:
        pytest.fail("something was dialled")

    monkeypatch.setattr("fovea.media.fetch._dial", dial)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was resolved"))


NOT_PUBLIC = [
    *("127.0.0.1", "[::1]", "[::]", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "192.0.0.1", "198.18.0.1", "192.0.2.1"),
    *("240.0.0.1", "224.0.0.1", "255.255.255.255", "[ff02::1]", "[fc00::1]", "[fd12:3456::1]", "[fec0::1]"),
    *("[64:ff9b::7f00:1]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]", "169.254.169.254", "168.63.129.16"),
]


@pytest.mark.usefixtures("never_dial")
@pytest.mark.parametrize("host", NOT_PUBLIC)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_that_are_not_public_are_never_dialled(scheme: str, host: str) -> None:
    names = Names()
    assert "no address that may be fetched" in refused(f"{scheme}://{host}/a.png?token=1", PUBLIC_ONLY, names)
    assert not names.asked


@pytest.mark.usefixtures("never_dial")
@pytest.mark.parametrize("port", [22, 25, 6379, 8000, 81])
def test_other_ports_are_refused_before_anything_is_asked(port: int) -> None:
    names = Names(a_test=["8.8.8.8"])
    for host in ("a.test", "8.8.8.8"):
        assert "port 80" in refused(f"http://{host}:{port}/", PUBLIC_ONLY, names)
    assert "port 80" in refused("https://a.test:80/", PUBLIC_ONLY, names)
    assert not names.asked


@pytest.mark.usefixtures("never_dial")
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["::1"],
        ["fe80::1%eth0"],
        ["8.8.8.8", "127.0.0.1"],
        ["8.8.8.8", "::1"],
        ["8.8.8.8"] * 3 + ["2606:4700::1", "169.254.169.254"],
        ["not an address"],
        [],
        [f"8.8.{i // 256}.{i % 256}" for i in range(MAX_ADDRESSES + 1)],
    ],
)
def test_one_bad_address_refuses_the_name_with_the_text_of_a_name_that_does_not_exist(addresses: list[str]) -> None:
    text = refused("http://a.test/", PUBLIC_ONLY, Names(a_test=addresses))
    assert text == refused("http://nowhere.test/", PUBLIC_ONLY).replace("nowhere.test", "a.test")


@pytest.mark.usefixtures("never_dial")
def test_other_ports_need_an_address_in_the_networks_of_the_option() -> None:
    names = Names(a_test=["8.8.8.8"])
    assert "port 80" in refused("http://a.test:8080/", policy(), names)
    assert "port 80" in refused("http://8.8.8.8:8080/", policy())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1"])
def test_this_machine_is_refused_by_default_whatever_its_name(host: str) -> None:
    with Server(says(answer(PNG))) as server:
        for rules in (PUBLIC_ONLY, FetchPolicy(100_000, 20.0, frozenset({"localhost", "127.0.0.1"}))):
            with pytest.raises(MediaSourceError, match="allowed_media_networks"):
                fetch_bytes(server.url(host=host), rules)
            with pytest.raises(MediaSourceError, match="allowed_media_networks"):
                fetch_bytes(f"http://{host}/", rules)
        assert server.num_connections == 0


@pytest.mark.usefixtures("never_dial")
@pytest.mark.parametrize(
    "host", ["sub.good.test", "evil-good.test", "good.test.evil.test", "\u0261ood.test", "evil.test", "8.8.8.8"]
)
def test_only_hosts_of_the_option_are_asked_for(host: str) -> None:
    rules, names = policy(domains=("good.test",)), Names()
    assert "allowed_media_domains" in refused(f"http://{host}/", rules, names)
    for url in (f"http://{host}#@good.test/", f"http://{host}?@good.test/", f"http://{host}/@good.test"):
        assert "allowed_media_domains" in refused(url, rules, names)
    assert not names.asked


@pytest.mark.parametrize("host", ["good.test", "GOOD.test", "good.test."])
def test_hosts_of_the_option_are_found_in_any_spelling(host: str) -> None:
    names = Names(good_test=["127.0.0.1"])
    with Server(says(answer(PNG))) as server:
        assert get(server.url(host=host), policy(domains=("good.test",)), names) == PNG
    assert names.asked == ["good.test"]


def test_a_host_of_the_option_is_still_judged_by_its_address() -> None:
    rules = FetchPolicy(100, 20.0, frozenset({"good.test"}))
    assert "no address" in refused("http://good.test/", rules, Names(good_test=["10.0.0.1"]))


def test_the_policy_is_made_of_the_options() -> None:
    config = EngineConfig(
        allowed_media_domains=["B\u00fccher.test.", "8.8.8.8"],  # type: ignore[arg-type]
        allowed_media_networks=["10.0.0.0/8", "fd00::1"],  # type: ignore[arg-type]
        media_fetch_timeout_s=2,
        max_image_bytes=77,
    )
    rules = FetchPolicy.from_config(config)
    assert rules.domains == frozenset({"xn--bcher-kva.test", "8.8.8.8"})
    assert [str(network) for network in rules.networks] == ["10.0.0.0/8", "fd00::1/128"]
    assert (rules.timeout_s, rules.max_bytes) == (2, 77)
    assert FetchPolicy.from_config(EngineConfig()).domains is None
    assert FetchPolicy.from_config(EngineConfig(allowed_media_domains=())).domains == frozenset()


@pytest.mark.parametrize("name", ["http://a.test", "a.test:80", "*.a.test", "", "a.test/x", "user@a.test", "0x7f.1"])
def test_domains_that_are_no_host_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match="allowed_media_domains has"):
        FetchPolicy.from_config(EngineConfig(allowed_media_domains=(name,)))


def test_the_name_is_resolved_once_and_the_judged_address_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that lies the second time is never asked a second time."""
    names = Names(a_test=["127.0.0.1"])
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was resolved again"))
    with Server(says(answer(PNG))) as server:
        assert get(server.url(host="a.test"), names=names) == PNG
        assert server.num_connections == 1
    assert names.asked == ["a.test"]


def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    with Server(says(answer(PNG))) as server:
        names = Names(a_test=["127.0.0.2", "127.0.0.1"])
        assert get(server.url(host="a.test"), names=names) == PNG


def test_nobody_there_is_a_failed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "the connection failed" in refused(f"http://127.0.0.1:{port}/")


def test_the_request_says_what_is_wanted_and_nothing_about_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxies and passwords of the environment are not used."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with Server(says(answer(PNG, "Set-Cookie: a=b"))) as server, Server(says(answer(b"proxy"))) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for _ in range(2):
            assert get(server.url("/a%20b.png?x=%2F#part")) == PNG
        assert proxy.num_connections == 0
        assert server.requests[0] == server.requests[1]
        lines = server.requests[0].decode("ascii").split("\r\n")
    assert lines[0] == "GET /a%20b.png?x=%2F HTTP/1.1"
    headers = dict(line.lower().split(": ", 1) for line in lines[1:-2])
    assert headers.pop("user-agent").startswith("fovea")
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "image/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


CHUNKED = "Transfer-Encoding: chunked"
GOOD_ANSWERS = {
    "a length": answer(PNG),
    "no length": answer(PNG, length=None),
    "chunks": answer(b"%x;a=b\r\n%b\r\n3\r\nend\r\n0\r\nTrailer: x\r\n\r\n" % (len(PNG), PNG), CHUNKED, length=None),
    "HTTP/1.0": answer(PNG).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another type": answer(PNG, "Content-Type: text/html"),
    "identity": answer(PNG, "Content-Encoding: identity"),
    "another 2xx": answer(PNG, status="203 Changed"),
    "notices before": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(PNG),
    "more than the length": answer(PNG) + b"HTTP/1.1 200 OK\r\n\r\nanother",
}


@pytest.mark.parametrize("name", GOOD_ANSWERS)
def test_good_answers_are_taken(name: str) -> None:
    with Server(says(GOOD_ANSWERS[name])) as server:
        assert get(server.url()).removesuffix(b"end") == PNG


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    for length in (-1, None):
        with Server(says(answer(PNG, length=length))) as server:
            assert get(server.url(), policy(max_bytes=len(PNG))) == PNG
            assert "max_image_bytes" in refused(server.url(), policy(max_bytes=len(PNG) - 1))


BAD_ANSWERS = {
    "nothing": (b"", "not valid HTTP"),
    "no HTTP": (b"hello\r\n\r\n", "not valid HTTP"),
    "SSH": (b"SSH-2.0-OpenSSH_9.7\r\n", "not valid HTTP"),
    "a header cut off": (b"HTTP/1.1 200 OK\r\nContent-Le", "not valid HTTP"),
    "a body cut off": (answer(PNG, length=len(PNG) + 1), "ended too early"),
    "chunks cut off": (answer(b"5\r\nab", CHUNKED, length=None), "ended too early"),
    "a bad chunk size": (answer(b"zz\r\nab\r\n0\r\n\r\n", CHUNKED, length=None), "not valid HTTP"),
    "two lengths": (answer(PNG, "Content-Length: 3"), "not valid HTTP"),
    "a negative length": (answer(PNG, "Content-Length: -7", length=None), "not valid HTTP"),
    "another coding": (answer(PNG, "Transfer-Encoding: gzip", length=None), "not valid HTTP"),
    "gzip": (answer(PNG, "Content-Encoding: gzip"), "compressed"),
    "br": (answer(PNG, "content-encoding: BR"), "compressed"),
    "zstd in a list": (answer(PNG, "Content-Encoding: identity, zstd"), "compressed"),
    "two encodings": (answer(PNG, "Content-Encoding: identity", "Content-Encoding: deflate"), "compressed"),
    "not found": (answer(PNG, status="404 Not Found"), "status 404"),
    "an error": (answer(PNG, status="500 secret token"), "status 500"),
    "not modified": (answer(b"", status="304 Not Modified"), "status 304"),
    "several choices": (answer(b"", "Location: /b", status="300 Multiple Choices"), "status 300"),
    "another protocol": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "ended too early"),
    "a redirect to nowhere": (answer(b"", status="302 Found"), "redirects"),
    "a redirect to two": (answer(b"", "Location: /b", "Location: /c", status="302 Found"), "redirects"),
    "a long header": (answer(PNG, "X: " + "x" * 20_000), "its answer"),
    "many headers": (answer(PNG, *["X: y"] * (MAX_HEADERS + 1)), "too many headers"),
    "a length over the limit": (answer(b"", length=100_001), "100,001 bytes"),
    "an absurd length": (answer(b"", length=10**19), "max_image_bytes"),
    "many notices": (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, "more headers"),
    "tiny chunks": (answer(b"1\r\na\r\n" * 50_000, CHUNKED, length=None), "more headers or chunks"),
    "long chunk sizes": (answer((b"1;" + b"x" * 9000 + b"\r\na\r\n") * 50, CHUNKED, length=None), "chunks"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers_are_refused_with_a_text_of_ours(name: str) -> None:
    data, message = BAD_ANSWERS[name]
    with Server(says(data)) as server:
        text = refused(server.url("/secret?token=1"))
    assert message in text
    assert "'127.0.0.1'" in text


@pytest.mark.parametrize("chunked", [False, True])
def test_an_endless_body_is_cut_at_the_limit(chunked: bool) -> None:
    sent = []

    def forever(connection: socket.socket, _: bytes) -> None:
        connection.sendall(answer(b"", *([CHUNKED] if chunked else []), length=None))
        while True:
            sent.append(connection.send(b"1000\r\n" + bytes(4096) + b"\r\n" if chunked else bytes(4096)))

    with Server(forever) as server:
        assert "more than 200,000 bytes" in refused(server.url(), policy(max_bytes=200_000))
    assert sum(sent) < 200_000 + 16 * 2**20  # what fits into the buffers of the two sockets


@pytest.mark.parametrize("where", ["before", "in the header", "in the body", "notices"])
def test_a_slow_drip_is_cut_by_the_deadline(where: str) -> None:
    whole = {
        "before": b"",
        "in the header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000,
        "in the body": answer(bytes(9000)),
        "notices": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    }[where]

    def drip(connection: socket.socket, _: bytes) -> None:
        for at in range(len(whole)):
            if not server.wait(0.01):
                return
            connection.sendall(whole[at : at + 1])
        server.wait(20)

    with Server(drip) as server:
        started = time.monotonic()
        assert "media_fetch_timeout_s" in refused(server.url(), policy(timeout_s=0.3))
        assert time.monotonic() - started < 8


def test_the_deadline_covers_redirects_together() -> None:
    def slow(connection: socket.socket, _: bytes) -> None:
        server.wait(0.25)
        connection.sendall(answer(b"", "Location: /b", status="302 Found"))

    with Server(slow) as server:
        assert "media_fetch_timeout_s" in refused(server.url(), policy(timeout_s=0.6))


def test_a_resolver_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do look-ups pile up: a bounded number runs, and a fetch that gets no turn ends by its deadline."""
    release, running = threading.Event(), []

    def stuck(*_: object, **__: object) -> list[Any]:
        running.append(1)
        release.wait(30)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", stuck)
    monkeypatch.setattr("fovea.media.fetch._look_ups", threading.BoundedSemaphore(2))
    started = time.monotonic()
    for _ in range(4):
        with pytest.raises(MediaSourceError, match="media_fetch_timeout_s"):
            fetch_bytes("http://a.test/", FetchPolicy(100, 0.1))
    assert time.monotonic() - started < 8
    assert len(running) == 2
    release.set()
    _end_look_ups()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b.png?y=%20#z", "b.png?y=%20", "//127.0.0.1:{port}/b.png?y=%20"])
def test_redirects_are_followed_with_a_plain_get(status: int, location: str) -> None:
    def script(connection: socket.socket, request: bytes) -> None:
        there = request.startswith(b"GET /b.png?y=%20 ")
        (says(answer(PNG)) if there else redirects(location.format(port=server.port), status))(connection, request)

    with Server(script) as server:
        assert get(server.url("/a.png?x=1")) == PNG
        assert len(server.requests) == 2
        assert b"Cookie" not in server.requests[1]
        assert b"Referer" not in server.requests[1]


REDIRECTS = {
    "http://10.0.0.1/": "no address that may be fetched",
    "http://169.254.169.254/latest/meta-data/?token=1": "no address that may be fetched",
    "http://[::1]/": "no address that may be fetched",
    "http://a.test:6379/": "no address that may be fetched",
    "//evil.test/": "no address that may be fetched",
    "http://user:secret@127.0.0.1/": "not permitted",
    "file:///etc/passwd": "not permitted",
    "ftp://a.test/": "not permitted",
    "data:image/png;base64,aGk=": "not permitted",
    "http://a.test\\@b.test/": "not permitted",
    "http://0x7f.1/": "not permitted",
    "http://[::1/": "not permitted",
    "http://a.te\tst/": "not permitted",
    "http://a.test/\xff": "not permitted",
    "/" + "x" * 8200: "not permitted",
}


@pytest.mark.parametrize("location", REDIRECTS, ids=lambda text: repr(text)[:50])
def test_each_redirect_is_judged_afresh(location: str) -> None:
    names = Names(a_test=["8.8.8.8"], evil_test=["192.168.0.1"])
    with Server(redirects(location)) as server:
        assert REDIRECTS[location] in refused(server.url(), names=names)
        assert server.num_connections == 1


def test_a_redirect_to_this_machine_does_not_arrive() -> None:
    """The first host is permitted by a network of the option, the second server lies outside of it."""
    with Server(says(answer(PNG))) as target, Server(redirects(f"http://localhost:{target.port}/")) as first:
        names = Names(a_test=["127.0.0.1"], localhost=["127.0.0.2"])
        only_first = FetchPolicy(100_000, 20.0, None, _network("127.0.0.1"))
        assert "'localhost'" in refused(first.url(host="a.test"), only_first, names)
        assert (first.num_connections, target.num_connections) == (1, 0)


def test_a_redirect_to_a_host_that_is_not_in_the_option_is_refused() -> None:
    names = Names(good_test=["127.0.0.1"], evil_test=["127.0.0.1"])
    with Server(says(answer(PNG))) as target, Server(redirects(target.url(host="evil.test"))) as first:
        text = refused(first.url(host="good.test"), policy(domains=("good.test",)), names)
        assert "allowed_media_domains" in text
        assert target.num_connections == 0


def test_two_hops_that_end_inside_are_refused() -> None:
    with Server(redirects("http://169.254.169.254/")) as second, Server(redirects(second.url())) as first:
        assert "no address that may be fetched" in refused(first.url())
        assert (first.num_connections, second.num_connections) == (1, 1)


def test_more_than_three_redirects_are_refused() -> None:
    def count_down(connection: socket.socket, request: bytes) -> None:
        left = int(request.split(b" ")[1][1:])
        (redirects(f"/{left - 1}") if left else says(answer(PNG)))(connection, request)

    with Server(count_down) as server:
        assert get(server.url("/3")) == PNG
        assert "more than 3 redirects" in refused(server.url("/4"))
    with Server(redirects("/a.png")) as server:
        assert "more than 3 redirects" in refused(server.url("/a.png"))
        assert server.num_connections == 4


def _network(text: str) -> tuple[Any, ...]:
    return FetchPolicy.from_config(EngineConfig(allowed_media_networks=(text,))).networks


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of good.test, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=good.test"]
    command += ["-addext", "subjectAltName=DNS:good.test", "-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder / "crt", folder / "key"


@pytest.fixture
def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def client_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


TLS_NAMES = {"good_test": ["127.0.0.1"], "evil_test": ["127.0.0.1"]}


def test_tls_is_checked_against_the_name(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with Server(says(answer(PNG)), server_tls) as server:
        assert get(server.url(host="good.test"), names=Names(**TLS_NAMES), tls=client_tls) == PNG
        assert f"good.test:{server.port}".encode() in server.requests[0]
        for host in ("evil.test", "127.0.0.1"):
            text = refused(server.url(host=host), names=Names(**TLS_NAMES), tls=client_tls)
            assert "certificate can't be verified" in text
        assert len(server.requests) == 1


def test_certificates_nobody_vouches_for_are_refused(server_tls: ssl.SSLContext) -> None:
    with Server(says(answer(PNG)), server_tls) as server:
        assert "certificate" in refused(server.url(host="good.test"), names=Names(**TLS_NAMES))
        assert not server.requests


def test_a_redirect_from_https_to_http_is_refused(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with Server(says(answer(PNG))) as plain, Server(redirects(plain.url(host="good.test")), server_tls) as server:
        text = refused(server.url(host="good.test"), names=Names(**TLS_NAMES), tls=client_tls)
        assert "from https to http" in text
        assert plain.num_connections == 0


def test_a_server_that_does_not_speak_tls_or_says_nothing_is_refused(client_tls: ssl.SSLContext) -> None:
    with Server(says(answer(PNG))) as plain:
        url = plain.url(host="good.test").replace("http:", "https:")
        text = refused(url, policy(timeout_s=0.4), Names(**TLS_NAMES), tls=client_tls)
        assert "failed" in text or "media_fetch_timeout_s" in text


def test_a_body_cut_off_inside_tls_is_refused(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with Server(says(answer(PNG, length=len(PNG) + 1)), server_tls) as server:
        refused(server.url(host="good.test"), names=Names(**TLS_NAMES), tls=client_tls)


def test_many_fetches_at_once_in_one_loop_and_in_threads() -> None:
    def numbered(connection: socket.socket, request: bytes) -> None:
        connection.sendall(answer(request.split(b" ")[1] * 1000))

    async def all_of(urls: list[str]) -> list[bytes]:
        return await asyncio.gather(*(fetch(url, policy()) for url in urls))

    with Server(numbered) as server:
        urls = [server.url(f"/{number}") for number in range(24)]
        want = [f"/{number}".encode() * 1000 for number in range(24)]
        assert asyncio.run(all_of(urls)) == want
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda url: fetch_bytes(url, policy()), urls)) == want


def test_no_task_and_no_transport_is_left_in_a_loop_that_goes_on() -> None:
    async def run() -> set[asyncio.Task[Any]]:
        with Server(says(answer(PNG))) as good, Server(says(b"junk\r\n\r\n")) as bad, Server(lambda *_: None) as cut:
            for url in (good.url(), bad.url(), cut.url(), "http://10.0.0.1/"):
                for rules in (policy(), policy(max_bytes=3), policy(timeout_s=0.01)):
                    await asyncio.gather(fetch(url, rules), return_exceptions=True)
        await asyncio.sleep(0)
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not asyncio.run(run(), debug=True)


def test_a_fetch_that_is_cancelled_closes_its_connection() -> None:
    async def run(url: str) -> None:
        task = asyncio.create_task(fetch(url, policy()))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def silent(connection: socket.socket, _: bytes) -> None:
        server.wait(20)

    with Server(silent) as server:
        asyncio.run(run(server.url()))


def test_a_picture_of_the_web_is_loaded_like_its_bytes() -> None:
    with Server(says(answer(PNG))) as server:
        source = parse_url(server.url(), allowed_local_media_path="", max_bytes=10**6)
        assert isinstance(source, UrlSource)
        assert load_picture(source, LIMITS, policy()).digest == load_picture(PNG, LIMITS).digest
        assert probe_size(source, LIMITS, policy()).num_bytes == len(PNG)
        with pytest.raises(MediaSourceError, match="not fetched here"):
            load_picture(source, LIMITS)
        with pytest.raises(MediaLimitError, match="max_image_pixels"):
            load_picture(source, MediaLimits(10**6, 10, 200.0), policy())
        with pytest.raises(MediaLimitError, match="max_image_bytes"):
            load_picture(source, MediaLimits(10, 10**6, 200.0), policy())


@pytest.mark.parametrize(
    ("body", "message"), [(b"", "empty"), (b"<html>", "supported format"), (PNG[:60], "incomplete")]
)
def test_what_is_no_picture_fails_while_decoding(body: bytes, message: str) -> None:
    with (
        Server(says(answer(body, "Content-Type: image/png"))) as server,
        pytest.raises(MediaDecodeError, match=message),
    ):
        load_picture(UrlSource(server.url()), LIMITS, policy())


def test_the_loopback_of_these_tests_is_not_permitted_by_default() -> None:
    assert EngineConfig().allowed_media_networks == ()
    assert LOOPBACK == ("127.0.0.0/8",)

"""The one place that opens a connection for a picture: http and https, by a policy.

Contract: the name is resolved once; every address of the answer is judged, and one of those is dialled as it is. One
GET without cookies, credentials or proxies; redirects are followed here, each judged afresh. Bytes are counted while
they arrive, nothing is decompressed, one deadline covers everything, and the connection is closed at the end. Failures
are MediaSourceError or MediaLimitError with texts that name the host at most. A refused address and a name that does
not exist give one and the same text: the answer must not tell what exists inside a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urljoin

import h11

from fovea.core.config import EngineConfig
from fovea.core.errors import FoveaError, InvalidOptionError, MediaLimitError, MediaSourceError
from fovea.media.address import IPAddress, IPNetwork, MediaUrl, judge, parse_host, parse_media_url

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

USER_AGENT = "fovea-vlm (+https://github.com/fovea-vlm/fovea)"
MAX_REDIRECTS = 3
MAX_ADDRESSES = 64  # of one name
MAX_DIALLED = 3
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
MAX_LOOK_UPS = 32  # at a time in this process; a look-up can't be interrupted

_READ_BYTES = 16 * 1024
_SPARE_BYTES = 64 * 1024  # what headers and chunk sizes may cost beside a quarter of the body
_MAX_HOST_ECHO = 100
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_look_ups = threading.BoundedSemaphore(MAX_LOOK_UPS)


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched, made from the options.

    domains: the hosts that may be named; None for any.
    networks: where addresses that are not public, and ports other than 80 and 443, are dialled too.
    """

    max_bytes: int
    timeout_s: float = 5.0
    domains: frozenset[str] | None = None
    networks: tuple[IPNetwork, ...] = ()

    @classmethod
    def from_config(cls, config: EngineConfig) -> FetchPolicy:
        """Raises InvalidOptionError."""
        domains = config.allowed_media_domains
        return cls(
            max_bytes=config.max_image_bytes,
            timeout_s=config.media_fetch_timeout_s,
            domains=None if domains is None else frozenset(_option_host(name) for name in domains),
            networks=tuple(ipaddress.ip_network(network) for network in config.allowed_media_networks),
        )


def fetch_bytes(url: str, policy: FetchPolicy) -> bytes:
    """`fetch` for a thread that has no event loop of its own running."""
    return asyncio.run(fetch(url, policy))


async def fetch(
    url: str, policy: FetchPolicy, *, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
) -> bytes:
    """The body that `url` answers with. `resolve` and `tls` take the place of the system's in tests."""
    first = parse_media_url(url)
    try:
        async with asyncio.timeout(policy.timeout_s):
            return await _follow(first, policy, resolve or look_up, tls)
    except TimeoutError:
        raise _failed(first, f"it took longer than {policy.timeout_s:g} s (option media_fetch_timeout_s)") from None


async def _follow(place: MediaUrl, policy: FetchPolicy, resolve: Resolve, tls: ssl.SSLContext | None) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        answer = await _one_hop(place, policy, resolve, tls)
        if isinstance(answer, bytes):
            return answer
        place = answer
    raise _failed(place, f"there were more than {MAX_REDIRECTS} redirects")


def check_place(place: MediaUrl, policy: FetchPolicy) -> None:
    """What can be judged without asking anybody."""
    if policy.domains is not None and place.host not in policy.domains:
        raise MediaSourceError(
            f"The picture was refused: the host {_echo(place)} is not in the option allowed_media_domains."
        )
    if not place.has_default_port and not policy.networks:
        raise _refused(place)
    if place.address is not None:
        _judge_all(place, [str(place.address)], policy)


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name. In a thread of its own that nobody waits for, because it can't be interrupted."""
    while not _look_ups.acquire(blocking=False):
        await asyncio.sleep(0.02)
    answer: Future[list[str]] = Future()
    answer.set_running_or_notify_cancel()
    thread = threading.Thread(target=_look_up, args=(host, port, answer), name="fovea-look-up", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        _look_ups.release()
        return []
    return await asyncio.wrap_future(answer)


def _look_up(host: str, port: int, answer: Future[list[str]]) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        addresses = [str(entry[4][0]) for entry in found]
    except (OSError, UnicodeError):
        addresses = []
    finally:
        _look_ups.release()
    answer.set_result(addresses)


async def _one_hop(
    place: MediaUrl, policy: FetchPolicy, resolve: Resolve, tls: ssl.SSLContext | None
) -> bytes | MediaUrl:
    """The body, or where it is said to be."""
    check_place(place, policy)
    try:
        texts = [place.host] if place.address is not None else await resolve(place.host, place.port)
        addresses = _judge_all(place, texts, policy)
        async with _connection(place, addresses, policy, tls) as (reader, writer):
            http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
            writer.write(_request(place, http))
            await writer.drain()
            return await _read_answer(_Answer(place, http, reader), policy)
    except FoveaError:
        raise
    except ssl.SSLCertVerificationError:
        raise _failed(place, "its certificate can't be verified") from None
    except h11.RemoteProtocolError:
        raise _failed(place, "its answer is not valid HTTP/1.1, or ended too early") from None
    except Exception:  # the border to sockets, TLS and a hostile peer
        raise _failed(place, "the connection failed") from None


def _judge_all(place: MediaUrl, texts: Sequence[str], policy: FetchPolicy) -> list[IPAddress]:
    """The addresses, if each of them may be dialled."""
    addresses = []
    for text in dict.fromkeys(texts):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise _refused(place) from None
        if judge(address, policy.networks) is not None:
            raise _refused(place) from None
        if not place.has_default_port and not any(address in network for network in policy.networks):
            raise _refused(place) from None
        addresses.append(address)
    if not 0 < len(addresses) <= MAX_ADDRESSES:
        raise _refused(place)
    return addresses


@contextlib.asynccontextmanager
async def _connection(
    place: MediaUrl, addresses: Sequence[IPAddress], policy: FetchPolicy, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the first address that takes one; cut, not negotiated, at the end."""
    sock = await _dial(addresses[:MAX_DIALLED], place.port, policy)
    writer = None
    try:
        if place.scheme == "https":
            context = tls or _default_tls()
            reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=place.host)
        else:
            reader, writer = await asyncio.open_connection(sock=sock)
        yield reader, writer
    finally:
        if writer is None:
            await asyncio.sleep(0)  # a handshake that was broken off closes its transport now
        else:
            writer.transport.abort()
            with contextlib.suppress(Exception):
                await writer.wait_closed()
        sock.close()


async def _dial(addresses: Sequence[IPAddress], port: int, policy: FetchPolicy) -> socket.socket:
    """An address that does not answer leaves time for the others."""
    error: OSError = ConnectionError()
    for address in addresses:
        sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(policy.timeout_s / len(addresses)):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
            return sock
        except OSError as failed:
            sock.close()
            error = failed
        except BaseException:
            sock.close()
            raise
    raise error


def _request(place: MediaUrl, http: h11.Connection) -> bytes:
    headers = [
        ("Host", place.authority),
        ("User-Agent", USER_AGENT),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    head = http.send(h11.Request(method="GET", target=place.target, headers=headers))
    return (head or b"") + (http.send(h11.EndOfMessage()) or b"")


class _Answer:
    """The events of an HTTP answer. What is received beside the body is bounded by the body."""

    def __init__(self, place: MediaUrl, http: h11.Connection, reader: asyncio.StreamReader) -> None:
        self.place = place
        self._http = http
        self._reader = reader
        self._num_body = 0
        self._num_received = 0

    async def next(self) -> h11.Event | None:
        """None at the end."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(_READ_BYTES)
            self._num_received += len(data)
            if self._num_received > self._num_body + self._num_body // 4 + _SPARE_BYTES:
                raise _failed(self.place, "its answer has far more headers or chunks than content")
            self._http.receive_data(data)
        if isinstance(event, h11.EndOfMessage):
            return None
        if not isinstance(event, h11.Response | h11.InformationalResponse | h11.Data):
            raise _failed(self.place, "its answer ended too early")
        if isinstance(event, h11.Data):
            self._num_body += len(event.data)
        return event


async def _read_answer(answer: _Answer, policy: FetchPolicy) -> bytes | MediaUrl:
    body = bytearray()
    while (event := await answer.next()) is not None:
        if isinstance(event, h11.Response):
            moved = _judge_response(answer.place, policy, event)
            if moved is not None:
                return moved
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > policy.max_bytes:
                raise _too_large(answer.place, f"more than {policy.max_bytes:,} bytes", policy)
    return bytes(body)


def _judge_response(place: MediaUrl, policy: FetchPolicy, response: h11.Response) -> MediaUrl | None:
    """None: the body may be read. Else where a redirect leads."""
    headers = list(response.headers)
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEADER_BYTES:
        raise _failed(place, "its answer has too many headers")
    if response.status_code in _REDIRECTS:
        return _redirect(place, _values(response, b"location"))
    if not 200 <= response.status_code <= 299:
        raise _failed(place, f"it answered with status {response.status_code}")
    if any(value.strip().lower() not in (b"", b"identity") for value in _values(response, b"content-encoding")):
        raise _failed(place, "its answer is compressed, though that was not asked for")
    for value in _values(response, b"content-length"):
        if int(value) > policy.max_bytes:
            raise _too_large(place, f"{int(value):,} bytes", policy)
    return None


def _redirect(place: MediaUrl, locations: Sequence[bytes]) -> MediaUrl:
    try:
        (location,) = (value.decode("utf-8") for value in locations)
        # urljoin drops tabs and the like from what it reads; its result is judged like any other address.
        moved = parse_media_url(urljoin(place.text, location) if location.isprintable() else "")
    except (ValueError, MediaSourceError):
        raise _failed(place, "it redirects to an address that is not permitted") from None
    if place.scheme == "https" and moved.scheme == "http":
        raise _failed(place, "it redirects from https to http")
    return moved


def _values(response: h11.Response, name: bytes) -> list[bytes]:
    return [value for key, value in response.headers if key == name]


@lru_cache(maxsize=1)
def _default_tls() -> ssl.SSLContext:
    """The system's certificates; made once, because reading them takes long."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _option_host(name: str) -> str:
    try:
        return parse_host(name)
    except MediaSourceError:
        raise InvalidOptionError(
            f"allowed_media_domains has {name[:_MAX_HOST_ECHO]!r}; permitted: host names alone, such as "
            "'images.example.org', without scheme, port, path or wildcard."
        ) from None


def _refused(place: MediaUrl) -> MediaSourceError:
    return MediaSourceError(
        f"The picture was refused: the host {_echo(place)} has no address that may be fetched from. Public addresses "
        "on port 80 (http) and 443 (https) may; the option allowed_media_networks permits others."
    )


def _too_large(place: MediaUrl, size: str, policy: FetchPolicy) -> MediaLimitError:
    return MediaLimitError(
        f"The picture at {_echo(place)} has {size}; the option max_image_bytes permits {policy.max_bytes:,}. Use a "
        "smaller file, or raise the option."
    )


def _failed(place: MediaUrl, reason: str) -> MediaSourceError:
    return MediaSourceError(
        f"The picture could not be fetched from {_echo(place)}: {reason}.", code="media_fetch_failed"
    )


def _echo(place: MediaUrl) -> str:
    return repr(place.host[:_MAX_HOST_ECHO])

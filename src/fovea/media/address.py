"""Which web addresses may be fetched: the text of a URL taken apart once, and the judgement of IP addresses.

Contract: pure, no I/O. `parse_media_url` gives the parts that are dialled and sent, so there is no second reading of
the text that could disagree; what is not in plain form is refused with MediaSourceError. `judge` refuses every IP
address that is not public unicast. Error texts repeat nothing of a URL.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NoReturn
from urllib.parse import quote

from fovea.core.errors import MediaSourceError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_URL_CHARS = 8192
MAX_HOST_CHARS = 253
DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([1-9][0-9]{0,4}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CHANGED_BY_IDNA = frozenset("\u00df\u03c2\u3002")  # sharp s and final sigma (two standards disagree), a dot

# Cloud metadata. Networks of the option lift these only if they name the one address.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16")
    + ("fd00:ec2::254", "fd20:ce::254")
)
_REFUSED_V4 = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_UNICAST_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "documentation"),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class MediaUrl:
    """`host`: lower-case ASCII without a trailing dot, or an IP address without brackets. `target`: path and query."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str

    @property
    def address(self) -> IPAddress | None:
        """The host, if it is an IP address."""
        return _as_address(self.host)

    @property
    def has_default_port(self) -> bool:
        return self.port == DEFAULT_PORTS[self.scheme]

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.has_default_port else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_media_url(url: str) -> MediaUrl:
    """Take an http or https URL apart. Raises MediaSourceError for everything that is not in plain form."""
    if len(url) > MAX_URL_CHARS:
        raise MediaSourceError(f"The picture's address has {len(url):,} characters; permitted are {MAX_URL_CHARS:,}.")
    if any(char in " \\" or not char.isprintable() for char in url):
        _refuse("it holds blanks, control characters or a backslash. Percent-encode them")
    match = _URL.fullmatch(url)
    if match is None:
        _refuse("it does not begin with http://<host> or https://<host>")
    scheme, authority, target = match[1].lower(), match[2], match[3]
    if "@" in authority:
        _refuse("it holds a user name or password, which are never sent. Take them out")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        _refuse("its host and port are not in plain form. Write http://<host>/ or http://<host>:<port>/")
    port = int(parts[2] or DEFAULT_PORTS[scheme])
    if port > 65535:
        _refuse("its port is above 65535")
    target = quote(target if target.startswith("/") else "/" + target, safe=_VISIBLE)
    return MediaUrl("https" if scheme == "https" else "http", parse_host(parts[1]), port, target)


def parse_host(text: str) -> str:
    """A host name or IP address in its one form. Raises MediaSourceError for odd ones, such as 0x7f.1 or 127.1."""
    if text.startswith("[") and text.endswith("]"):
        return _parse_v6(text[1:-1])
    if not text.isascii():
        text = _to_ascii(text)
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        _refuse("its host is not a valid name")
    if _NUMBER.fullmatch(labels[-1]):
        address = _as_address(host)
        if address is None:
            _refuse("its host is a number in an unusual form. Write an IP address as 192.0.2.1")
        return str(address)
    return host


def judge(address: IPAddress, allowed: Sequence[IPNetwork] = ()) -> str | None:
    """Why this address may not be dialled; None if it may: it is public, or lies in a network of `allowed`."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "zone"
        address = _embedded_v4(address) or address
    if address in _METADATA:
        named = any(net.num_addresses == 1 and address in net for net in allowed)
        return None if named else "metadata"
    if any(address in network for network in allowed):
        return None
    return _judge_v4(address) if isinstance(address, IPv4Address) else _judge_v6(address)


def _judge_v4(address: IPv4Address) -> str | None:
    reason = next((reason for network, reason in _REFUSED_V4 if address in network), None)
    return reason or (None if address.is_global and not address.is_multicast else "not public")


def _judge_v6(address: IPv6Address) -> str | None:
    reason = next((reason for network, reason in _REFUSED_V6 if address in network), None)
    return reason or (None if address in _UNICAST_V6 and address.is_global else "not public")


def _embedded_v4(address: IPv6Address) -> IPv4Address | None:
    """Of ::ffff:a.b.c.d, and of 64:ff9b::a.b.c.d, which is how networks without IPv4 reach it.

    The other forms that embed one (IPv4-compatible, 6to4, Teredo) are out of use and refused as they are.
    """
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None


def _as_address(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _parse_v6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        _refuse("its host is not a valid IPv6 address")


def _to_ascii(host: str) -> str:
    """An international name as xn--...; only names that are already in normal form, so that none looks like another."""
    lower = host.lower()
    plain = unicodedata.normalize("NFKC", lower) == lower and not _CHANGED_BY_IDNA & set(lower)
    if not plain or len(host) > MAX_HOST_CHARS:
        _refuse("its host has characters in an unusual form. Write it in its xn-- form")
    try:
        return lower.encode("idna").decode("ascii")
    except UnicodeError:
        _refuse("its host is not a valid international name. Write it in its xn-- form")


def _refuse(reason: str) -> NoReturn:
    raise MediaSourceError(f"The picture's address was refused: {reason}.") from None


_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F))

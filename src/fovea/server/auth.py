"""Who may ask, and through which name: hosts and keys, judged from the headers before a byte of the body is read.

Everything needs a key when keys are set, but for the paths listed in PUBLIC_PATHS: a new route is protected by default.
A key comes as "Authorization: Bearer <key>", or as the password of Basic authentication so that the playground works in
a browser. Keys are compared by their SHA-256, in constant time and against every key.

Browsers: a page of another origin can make one send a request with the credentials it remembers; such requests are
refused. While listening on loopback only local names are answered to, so that a name that resolves to 127.0.0.1
(DNS rebinding) reaches nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path

from starlette.types import Scope

from fovea.core.errors import ForbiddenError, InvalidOptionError, RouteError, UnauthorizedError
from fovea.core.server_config import ServerConfig

PUBLIC_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ready"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_KEY_FILE_BYTES = 1024 * 1024
KEY = re.compile(r"[\x21-\x7e]{1,512}")
HOST = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


def header_values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def header(scope: Scope, name: bytes) -> str:
    """The one value of a header; "" if there is none. Two that differ are no value either."""
    values = set(header_values(scope, name))
    return values.pop() if len(values) == 1 else ""


class Keys:
    """The server's keys, as digests. Without any, everybody may ask and belongs to tenant ""."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests: list[bytes] = []
        self._tenants: list[str] = []
        for key in dict.fromkeys(keys):
            if not KEY.fullmatch(key):
                raise InvalidOptionError("api_key: a key is 1 to 512 visible ASCII characters, without spaces.")
            self._digests.append(digest(key))
            self._tenants.append(hashlib.sha256(b"tenant\0" + key.encode()).hexdigest()[:32])

    @classmethod
    def from_config(cls, config: ServerConfig) -> Keys:
        return cls([*config.api_key, *(keys_of_file(config.api_key_file) if config.api_key_file else ())])

    def __len__(self) -> int:
        return len(self._digests)

    def tenant_of(self, key: str) -> str | None:
        """The tenant whose key this is. Every key is looked at, whichever fits."""
        presented = digest(key)
        found: str | None = None
        for known, tenant in zip(self._digests, self._tenants, strict=True):
            if hmac.compare_digest(presented, known):
                found = tenant
        return found


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def keys_of_file(path: str) -> list[str]:
    try:
        data = Path(path).read_bytes()[: MAX_KEY_FILE_BYTES + 1]
        lines = data.decode("utf-8").splitlines()
    except OSError:
        raise InvalidOptionError(f"api_key_file: {path!r} cannot be read.") from None
    except UnicodeDecodeError:
        raise InvalidOptionError(f"api_key_file: {path!r} is not text.") from None
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InvalidOptionError(f"api_key_file: {path!r} is larger than {MAX_KEY_FILE_BYTES:,} bytes.")
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise InvalidOptionError(f"api_key_file: {path!r} holds no key.")
    return keys


def presented_key(scope: Scope) -> tuple[str, str]:
    """(scheme, key) of the Authorization header; ("", "") if there is none or it is unreadable."""
    scheme, _, rest = header(scope, b"authorization").partition(" ")
    scheme, rest = scheme.lower(), rest.strip()
    if scheme == "bearer":
        return scheme, rest
    if scheme == "basic":
        try:
            user, _, password = base64.b64decode(rest, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return "", ""
        return scheme, password
    return "", ""


class Hosts:
    """The names this server answers to. None listed: any, or just local ones while listening on loopback."""

    def __init__(self, config: ServerConfig) -> None:
        self._names = frozenset(bare(name) for name in config.allowed_hosts)
        self._local = is_local(bare(config.host))
        self._any = "*" in config.allowed_hosts or not (self._names or self._local)

    def check(self, host: str) -> None:
        match = HOST.fullmatch(host)
        if match is None:
            raise RouteError("The Host header is not a host name with an optional port.", code="invalid_host")
        name = bare(match[1])
        if not (self._any or name in self._names or (self._local and is_local(name))):
            raise ForbiddenError(
                "This server does not answer to that host name. Its operator can allow it (allowed_hosts)."
            )


def bare(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Guard:
    """Judges the headers of a request; raises RouteError, or leaves the tenant in scope["state"]."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = Keys.from_config(config)
        self._hosts = Hosts(config)

    def check_host(self, scope: Scope) -> None:
        hosts = header_values(scope, b"host")
        if not hosts and scope["http_version"] == "1.0":
            return  # old health checks; no browser is one
        self._hosts.check(hosts[0] if len(hosts) == 1 else "")

    def check_authority(self, authority: str) -> None:
        self._hosts.check(authority)

    def check_key(self, scope: Scope) -> None:
        scope["state"]["tenant"] = ""
        if not self._keys or scope["path"] in PUBLIC_PATHS:
            return
        scheme, key = presented_key(scope)
        tenant = self._keys.tenant_of(key)
        if tenant is None:
            raise UnauthorizedError("A valid API key is needed. Send it as Authorization: Bearer <key>.")
        cross_site = header(scope, b"sec-fetch-site") == "cross-site"
        if scheme == "basic" and cross_site and scope["method"] not in SAFE_METHODS:
            raise ForbiddenError(
                "A page of another site may not use the credentials that this browser remembers.",
                code="origin_not_allowed",
            )
        scope["state"]["tenant"] = tenant


def challenge(scope: Scope) -> str:
    """What a 401 asks for: a browser that wants a page shows its dialog for Basic."""
    wants_page = scope["method"] == "GET" and "text/html" in header(scope, b"accept")
    return 'Basic realm="fovea", charset="UTF-8"' if wants_page else 'Bearer realm="fovea"'

"""Keys and hosts, judged from headers alone."""

from __future__ import annotations

import base64
import inspect
from pathlib import Path
from typing import Any

import pytest

from fovea.core.errors import ForbiddenError, InvalidOptionError, RouteError, UnauthorizedError
from fovea.core.server_config import ServerConfig
from fovea.server import auth
from fovea.server.auth import PUBLIC_PATHS, Guard, Keys, challenge


def scope(
    path: str = "/v1/models", *headers: tuple[str, str], method: str = "GET", version: str = "1.1"
) -> dict[str, Any]:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "method": method, "path": path, "headers": encoded, "http_version": version, "state": {}}


def basic(text: str) -> tuple[str, str]:
    return "authorization", "Basic " + base64.b64encode(text.encode()).decode()


def bearer(key: str) -> tuple[str, str]:
    return "authorization", f"Bearer {key}"


def guard(**options: Any) -> Guard:
    return Guard(ServerConfig(**options))


def test_without_keys_everybody_may_ask() -> None:
    asked = scope()
    guard().check_key(asked)
    assert asked["state"]["tenant"] == ""


@pytest.mark.parametrize("credentials", [bearer("one"), bearer("two"), basic("anybody:two"), basic(":one")])
def test_any_of_the_keys_opens(credentials: tuple[str, str]) -> None:
    asked = scope("/v1/models", credentials)
    guard(api_key=("one", "two")).check_key(asked)
    assert asked["state"]["tenant"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (bearer(""),),
        (bearer("On"),),
        (bearer("onE"),),
        (bearer("one two"),),
        (bearer("one\xff"),),
        (bearer("one"), bearer("other")),
        (basic("one"),),
        (basic("one:"),),
        (("authorization", "Basic one"),),
        (("authorization", "one"),),
        (("authorization", "Digest one"),),
        (("x-api-key", "one"),),
    ],
)
def test_everything_else_is_turned_away(headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        guard(api_key=("one",)).check_key(scope("/v1/models", *headers))
    assert caught.value.status == 401


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/docs", "/tokenize", "/v2/new", "/health/", "/HEALTH", "//health", "/health/%6cive", "*"]
)
def test_a_path_that_is_not_listed_as_public_needs_a_key(path: str) -> None:
    with pytest.raises(UnauthorizedError):
        guard(api_key=("one",)).check_key(scope(path))


def test_health_is_public() -> None:
    assert {"/health", "/health/live", "/health/ready", "/ready"} == PUBLIC_PATHS
    for path in PUBLIC_PATHS:
        guard(api_key=("one",)).check_key(scope(path))


def test_tenants_are_told_apart_and_do_not_give_the_key_away() -> None:
    keys = Keys(["secret-one", "secret-two", "secret-one"])
    first, second = keys.tenant_of("secret-one"), keys.tenant_of("secret-two")
    assert len(keys) == 2
    assert first != second
    assert first is not None
    assert "secret" not in first
    assert Keys(["other", "secret-one"]).tenant_of("secret-one") == first, "the same after a restart with other keys"


def test_keys_are_compared_in_constant_time_and_all_of_them() -> None:
    source = inspect.getsource(Keys.tenant_of)
    assert "hmac.compare_digest" in source
    assert "break" not in source
    assert source.count("return") == 1
    assert "==" not in source


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\n  two  \nthree\n")
    keys = Keys.from_config(ServerConfig(api_key=("one",), api_key_file=str(file)))
    assert [keys.tenant_of(key) is not None for key in ("one", "two", "three", "# ours", "")] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize(
    "content", [None, b"", b"# none\n", b"\xff\xfe", b"a key with blanks\n", b"x" * 600, b"a\n" * 600_000]
)
def test_a_file_that_holds_no_good_keys_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidOptionError, match="api_key"):
        guard(api_key_file=str(file))


@pytest.mark.parametrize("key", ["", "with blank", "schlüssel", "a\nb", "x" * 513])
def test_a_key_that_no_header_can_hold_stops_the_start(key: str) -> None:
    with pytest.raises(InvalidOptionError, match="visible ASCII"):
        guard(api_key=(key,))


def test_another_sites_page_may_not_post_with_remembered_credentials() -> None:
    one = guard(api_key=("one",))
    foreign = ("sec-fetch-site", "cross-site")
    with pytest.raises(ForbiddenError) as caught:
        one.check_key(scope("/v1/models", basic("x:one"), foreign, method="POST"))
    assert caught.value.code == "origin_not_allowed"
    one.check_key(scope("/v1/models", basic("x:one"), foreign))
    one.check_key(scope("/v1/models", bearer("one"), foreign, method="POST"))
    one.check_key(scope("/v1/models", basic("x:one"), ("sec-fetch-site", "same-origin"), method="POST"))


def test_only_a_browser_that_wants_a_page_is_asked_for_a_password() -> None:
    assert challenge(scope("/", ("accept", "text/html,*/*"))).startswith("Basic")
    assert challenge(scope("/", ("accept", "application/json"))).startswith("Bearer")
    assert challenge(scope("/", ("accept", "text/html"), method="POST")).startswith("Bearer")


def host_status(one: Guard, *hosts: str, version: str = "1.1") -> int:
    try:
        one.check_host(scope("/", *(("host", host) for host in hosts), version=version))
    except RouteError as error:
        return error.status
    return 200


@pytest.mark.parametrize("listen", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_on_loopback_only_local_names_are_answered(listen: str) -> None:
    one = guard(host=listen)
    for host in ("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:1", "[::1]:8000", "127.9.9.9", "a.localhost"):
        assert host_status(one, host) == 200, host
    for host in ("evil.test", "localhost.evil.test", "10.0.0.1", "[::2]", "0.0.0.0", "127.0.0.1.evil.test", "1.1"):
        assert host_status(one, host) == 403, host


def test_elsewhere_any_name_is_answered_unless_some_are_listed() -> None:
    assert host_status(guard(host="0.0.0.0"), "any.test:80") == 200
    listed = guard(host="0.0.0.0", allowed_hosts=("Good.test",))
    assert [host_status(listed, host) for host in ("good.test:1", "evil.test", "localhost")] == [200, 403, 403]
    both = guard(allowed_hosts=("good.test",))
    assert [host_status(both, host) for host in ("good.test:1", "evil.test", "localhost")] == [200, 403, 200]
    assert host_status(guard(allowed_hosts=("*",)), "any.test") == 200


@pytest.mark.parametrize(
    "host",
    ["", " ", "x/v1/public?", "a@b", "a b", "a:123456", "a:", "[::1", "::1", "[1]", "a,b", "a\\b", "%61", "x" * 256],
)  # fmt: skip
def test_what_is_no_host_name_is_a_bad_request(host: str) -> None:
    assert host_status(guard(host="0.0.0.0"), host) == 400


def test_two_hosts_or_none_are_a_bad_request() -> None:
    assert host_status(guard(), "localhost", "localhost") == 400
    assert host_status(guard()) == 400
    assert host_status(guard(), version="1.0") == 200


def test_the_module_names_no_path_as_protected() -> None:
    """Protection is what is left when the public paths are taken away, never a list of its own."""
    assert "/v1" not in inspect.getsource(auth)

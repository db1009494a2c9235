"""U: addresses of pictures. Whatever is typed, no address is dialled that the operator did not allow.

Three rooms: `plain` allows nothing but the public internet (which no test asks for anything), `open` allows
127.0.0.0/8 with every port, so that fetching itself can be tried, and forbids the rest, `::1` and 0.0.0.0 included.
Names that only a resolver could map (U20, U31, U32, U38) are tried where a resolver can be handed in: README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from tests.corpus import files
from tests.corpus.case import PICTURES, Case, Expect, Parts, answered, case, refused
from tests.corpus.routes import image, text
from tests.corpus.scene import Scene

NOT_ALLOWED = "media_url_not_allowed"
FAILED = "media_fetch_failed"
DENIED = refused(NOT_ALLOWED, param="messages.0.content.0", hits=0, within_s=0.25)
FETCH_TIMEOUT_S = 1.5  # of the `open` server

# Hosts, by row. {p} is the port of a listener that must not be hit; addresses without a listener have port 80.
DENIED_HOSTS: dict[str, tuple[str, ...]] = {
    "U01": ("127.0.0.1:{p}", "127.0.0.1", "127.255.255.254:{p}"),
    "U02": (
        "localhost:{p}",
        "localhost",
        "LocalHost.",
        "LOCALHOST:{p}",
        "localhost.:{p}",
        "localhost.localdomain:{p}",
        "a.localhost:{p}",
    ),
    "U03": ("127.1:{p}", "127.0.1:{p}", "0:{p}", "0.0.0.0:{p}"),
    "U04": ("[::1]:{p6}", "[::]:{p6}", "[0:0:0:0:0:0:0:1]:{p6}"),
    "U05": ("[::ffff:127.0.0.1]:{p}", "[::ffff:7f00:1]:{p}"),
    "U06": ("2130706433:{p}", "2130706433"),
    "U07": ("0x7f000001:{p}", "0x7f.1:{p}", "0x7f.0x0.0x0.0x1:{p}"),
    "U08": ("017700000001:{p}", "0177.0.0.1:{p}", "0127.0.0.1:{p}"),
    "U10": ("①②⑦.⓪.⓪.①:{p}", "１２７.０.０.１:{p}", "127。0。0。1:{p}", "ⓛocalhost:{p}"),
    "U11": ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    "U12": ("169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "168.63.129.16"),
    "U13": ("100.64.0.1", "192.0.0.1", "198.18.0.1", "192.0.2.1", "240.0.0.1", "203.0.113.5"),
    "U14": ("224.0.0.1", "255.255.255.255", "[ff02::1]"),
    "U15": ("[fe80::1]", "[fe80::1%25lo]:{p6}"),
    "U16": ("[fc00::1]", "[fd12:3456::1]", "[fec0::1]", "[fd00:ec2::254]"),
    "U17": ("[64:ff9b::7f00:1]:{p}", "[64:ff9b:1::a00:1]", "[64:ff9b::a9fe:a9fe]"),
    "U18": ("[2002:7f00:1::]:{p}", "[2002:a9fe:a9fe::]", "192.88.99.1", "[2001:db8::1]"),
    "U19": ("[::127.0.0.1]:{p}", "[::a9fe:a9fe]"),
    "U22": (
        "user:pw@127.0.0.1:{p}",
        "127.0.0.1:{p}@example.com",
        "example.com@127.0.0.1:{p}",
        "example.com%40127.0.0.1:{p}",
    ),
    "U23": ("127.0.0.1:{p}#@example.com", "127.0.0.1:{p}?@example.com", "127.0.0.1:{p};example.com"),
    "U21": ("127.0.0.1:{p}\\@example.com", "example.com\\@127.0.0.1:{p}", "127.0.0.1:{p}\\.example.com"),
    "U24": ("127.0.0.1\t:{p}", "127.0.0.1\n:{p}", "127.0.0.1:{p}\r\nX: y"),
    "U37": (
        "example.com:22",
        "example.com:25",
        "example.com:6379",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "127.0.0.1:{p}:90",
        "127.0.0.1:+{p}",
        "127.0.0.1: {p}",
        "127.0.0.1:-1",
        "127.0.0.1:８０",
        "127.0.0.1:",
    ),
}

OTHER_FORMS: dict[str, tuple[str, ...]] = {
    "U33": ("file:///etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd"),
    "U34": ("/etc/passwd", "../x.png", "C:\\x.png", "~/x", "\\\\host\\share\\x.png", "picture.png"),
    "U36": (
        "ftp://127.0.0.1:{p}/a.png",
        "gopher://127.0.0.1:{p}/_x",
        "dict://127.0.0.1:{p}/d:x",
        "jar:http://127.0.0.1:{p}/!/a",
        "unix:///var/run/docker.sock",
        "s3://bucket/a.png",
        "blob:http://127.0.0.1:{p}/1",
        "javascript:alert(1)",
        "http+unix://x/a",
        "ws://127.0.0.1:{p}/",
    ),
    "U49": (
        " ",
        "http://",
        "http:///x",
        "http:x",
        "//127.0.0.1:{p}/x",
        "http:/127.0.0.1:{p}/x",
        "http:\\\\127.0.0.1:{p}\\x",
        "http://?x",
        "http://#x",
        "https://",
        "http://[",
        "http://]/",
        "http://[::1",
        "http://.",
        "http://..",
        "http://%31%32%37.0.0.1:{p}/",
        " http://127.0.0.1:{p}/",
        "http://127.0.0.1:{p}/a b",
        "ht\ttp://127.0.0.1:{p}/",
        "http://-a.example/",
    ),
}


def deny_cases() -> list[Case]:
    cases = []
    quick = {"U01", "U06", "U12", "U21", "U33"}
    for row, hosts in DENIED_HOSTS.items():
        for number, host in enumerate(hosts):
            flags = "quick" if row in quick and number == 0 else ""
            cases.append(_denied(f"{row}-{number}-{_label(host)}", f"http://{host}/a.png", flags))
    for row, urls in OTHER_FORMS.items():
        for number, url in enumerate(urls):
            flags = "quick" if row in quick and number == 0 else ""
            cases.append(_denied(f"{row}-{number}-{_label(url)}", url, flags))
    cases.append(_denied("U49-long", "http://127.0.0.1/" + "a" * 9 * 1024))
    empty = refused(NOT_ALLOWED, "invalid_value", "string_too_short", param="messages.0.content.0", hits=0)
    cases.append(case("U49-empty", lambda _: _parts(""), empty, routes=PICTURES))
    cases.append(case("U37-ourselves", _ourselves, DENIED, routes=PICTURES))
    return cases


def _denied(id: str, template: str, flags: str = "") -> Case:
    def make(scene: Scene) -> Parts:
        url = template.replace("{p6}", str(scene.forbidden_v6_port)).replace("{p}", str(scene.forbidden_port))
        return _parts(url)

    return case(id, make, DENIED, routes=PICTURES, flags=flags)


def _ourselves(scene: Scene) -> Parts:
    return _parts(f"http://127.0.0.1:{scene.world.upstream.port}/s{scene.number}/good")


def _parts(url: str) -> Parts:
    return Parts([image(url), text()])


def _label(value: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else "." for char in value.replace("{p}", "p"))[:30]


# --- where loopback is allowed -------------------------------------------------------------------------------------


def _as_good(_: Scene) -> Parts:
    return _parts(files.data_url(files.good_png()))


def _upstream(action: str, host: str = "127.0.0.1") -> Callable[[Scene], Parts]:
    return lambda scene: _parts(scene.url(action, host))


def _redirect_to(status: int, target: str) -> Callable[[Scene], Parts]:
    def make(scene: Scene) -> Parts:
        place = target.replace("{p6}", str(scene.forbidden_v6_port)).replace("{p}", str(scene.forbidden_port))
        return _parts(scene.url(f"redirect/{status}/{quote(place, safe='')}"))

    return make


def _redirect_twice(scene: Scene) -> Parts:
    """The second of our own addresses sends on to the metadata service."""
    second = scene.url(f"redirect/302/{quote('http://169.254.169.254/latest', safe='')}")
    return _parts(scene.url(f"redirect/302/{quote(second, safe='')}"))


def _failed(within_s: float = 0.5, hits: int | None = None, *codes: str) -> Expect:
    return refused(FAILED, *codes, param="messages.0.content.0", within_s=within_s, hits=hits)


def fetch_cases() -> list[Case]:
    refused_after_one = refused(NOT_ALLOWED, FAILED, param="messages.0.content.0", hits=1, within_s=0.5)
    broken = refused("invalid_image", "unsupported_image_format", FAILED, param="messages.0.content.0", within_s=0.5)
    slow = FETCH_TIMEOUT_S
    rows: list[tuple[str, Callable[[Scene], Parts], Expect, str]] = [
        ("U00-good", _upstream("good"), answered(same_as=_as_good, hits=1), "quick"),
        ("U00-good-localhost", _upstream("good", "localhost"), answered(same_as=_as_good, hits=1), ""),
        ("U26-two-hops", _redirect_twice, refused(NOT_ALLOWED, FAILED, hits=2, within_s=0.5), ""),
        ("U27-to-file", _redirect_to(302, "file:///etc/passwd"), refused_after_one, ""),
        ("U27-to-data", _redirect_to(302, "data:image/png;base64,AAAA"), refused_after_one, ""),
        ("U27-to-ftp", _redirect_to(302, "ftp://127.0.0.1:{p}/a"), refused_after_one, ""),
        ("U27-to-user-info", _redirect_to(302, "http://a:b@127.0.0.1:{p}/a"), refused_after_one, ""),
        ("U27-to-number", _redirect_to(302, "http://2130706433:{p}/a"), refused_after_one, ""),
        ("U28-three-hops", _upstream("hops/3"), answered(same_as=_as_good, hits=4), ""),
        ("U28-four-hops", _upstream("hops/4"), _failed(0.5, 4), ""),
        ("U28-loop", _upstream("loop"), _failed(0.5, 4), ""),
        ("U28-no-location", _upstream("no-location"), _failed(0.5, 1), ""),
        ("U28-not-modified", _upstream("not-modified"), _failed(0.5, 1), ""),
        ("U39-announced", _upstream("announced"), refused("media_too_large", FAILED, within_s=0.5), "memory"),
        ("U40-endless", _upstream("endless"), refused("media_too_large", FAILED, within_s=2.0), "quick memory"),
        ("U41-silent", _upstream("silent"), _failed(slow, 1), ""),
        ("U41-pause", _upstream("pause"), _failed(slow, 1), ""),
        ("U41-drip", _upstream("drip"), _failed(slow, 1), ""),
        ("U43-gzip", _upstream("gzip"), _failed(), ""),
        ("U43-br", _upstream("br"), _failed(), ""),
        ("U43-zstd", _upstream("zstd"), _failed(), ""),
        ("U44-bomb", _upstream("gzip-bomb"), _failed(), "memory"),
        ("U44-members", _upstream("many-members"), _failed(), "memory"),
        ("U45-garbage", _upstream("garbage"), _failed(), ""),
        ("U45-big-header", _upstream("big-header"), _failed(), ""),
        ("U45-missing", _upstream("missing"), _failed(), ""),
        ("U45-error", _upstream("error"), _failed(), ""),
        ("U45-nobody-there", lambda _: _parts("http://127.0.0.1:1/a.png"), _failed(), ""),
        ("U46-html", _upstream("html"), broken, ""),
        ("U46-svg", _upstream("svg"), refused("invalid_image", "unsupported_image_format", within_s=0.5), ""),
        ("U46-empty", _upstream("empty"), broken, ""),
        ("U46-as-html", _upstream("as-html"), answered(same_as=_as_good, hits=1), ""),
        ("U47-reset", _upstream("reset"), _failed(), ""),
        ("U47-short", _upstream("short"), _failed(slow), ""),
        ("U48-http09", _upstream("garbage"), _failed(), ""),
    ]
    rows += [
        (
            f"U25-{status}",
            _redirect_to(status, "http://[::1]:{p6}/a.png"),
            refused_after_one,
            "quick" if status == 302 else "",
        )
        for status in (301, 302, 303, 307, 308)
    ]
    rows += [
        ("U25-to-0.0.0.0", _redirect_to(302, "http://0.0.0.0:{p}/a.png"), refused_after_one, ""),
        ("U25-to-mapped", _redirect_to(302, "http://[::ffff:0.0.0.0]:{p}/a.png"), refused_after_one, ""),
        ("U25-scheme-relative", _redirect_to(302, "//[::1]:{p6}/a.png"), refused_after_one, ""),
    ]
    return [case(id, make, expect, routes=PICTURES, flags=flags, profile="open") for id, make, expect, flags in rows]


def repeat_cases() -> list[Case]:
    """U42, U50: many addresses in one request."""

    def same(scene: Scene) -> Parts:
        return Parts([*[image(scene.url("good"))] * 16, text()])

    def same_data(_: Scene) -> Parts:
        return Parts([*[image(files.data_url(files.good_png()))] * 16, text()])

    def slow(scene: Scene) -> Parts:
        return Parts([*[image(scene.url(f"silent/{n}")) for n in range(16)], text()])

    def too_many(scene: Scene) -> Parts:
        return Parts([*[image(scene.url(f"good/{n}")) for n in range(17)], text()])

    many = refused("too_many_media_items", hits=0)
    return [
        case("U50-same-16", same, answered(same_as=same_data, hits=1), routes=PICTURES, profile="open"),
        case("U42-slow-16", slow, _failed(FETCH_TIMEOUT_S), routes=PICTURES, profile="open"),
        case("U42-17-addresses", too_many, many, routes=PICTURES, profile="open", flags="quick"),
    ]


# --- files ---------------------------------------------------------------------------------------------------------

# Below the folder of the case, which holds media/ (permitted), media2/, outside.png.
BAD_FILES: tuple[str, ...] = (
    "media/../outside.png",
    "media/%2e%2e/outside.png",
    "media/..%2foutside.png",
    "media/....//outside.png",
    "media/inner/../../outside.png",
    "media2/good.png",
    "outside.png",
    "media/link.png",
    "media/pipe.png",
    "media/zero",
    "media",
    "media/",
    "media/missing.png",
    "media/good.png%00.txt",
    "media/good.png?x=1",
    "media/good.png#x",
    "media/%252e%252e/outside.png",
)
GOOD_FILES: tuple[str, ...] = (
    "media/good.png",
    "media/inner/good.png",
    "media/with%20space.png",
    "media/inside_link.png",
)
OTHER_FILES: tuple[str, ...] = (
    "file:///etc/passwd",
    "file://example.com/etc/passwd",
    "file:///dev/zero",
    "file:///dev/stdin",
    "file:///proc/self/environ",
    "file:media/good.png",
    "file://media/good.png",
    "file:///",
    "file://",
    "file:////etc/passwd",
    "/etc/passwd",
)


def file_cases() -> list[Case]:
    def below(name: str) -> Callable[[Scene], Parts]:
        return lambda scene: _parts(f"file://{quote(str(scene.folder))}/{name}")

    def other(url: str) -> Callable[[Scene], Parts]:
        return lambda _: _parts(url)

    cases = [
        case(f"U35-{number}-{_label(name)}", below(name), DENIED, routes=PICTURES, profile="open")
        for number, name in enumerate(BAD_FILES)
    ]
    cases += [
        case(f"U35-good-{_label(name)}", below(name), answered(same_as=_as_good), routes=PICTURES, profile="open")
        for name in GOOD_FILES
    ]
    cases += [
        case(f"U35-other-{n}-{_label(url)}", other(url), DENIED, routes=PICTURES, profile="open")
        for n, url in enumerate(OTHER_FILES)
    ]
    text_file = refused("invalid_image", "unsupported_image_format", param="messages.0.content.0")
    cases.append(case("U35-no-picture", below("media/secret.txt"), text_file, routes=PICTURES, profile="open"))
    return cases


CASES: tuple[Case, ...] = (*deny_cases(), *fetch_cases(), *repeat_cases(), *file_cases())

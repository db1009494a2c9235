"""Addresses: URLs are read in one strict way, and only public IP addresses pass."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest

from fovea.core.errors import MediaSourceError
from fovea.media.address import MediaUrl, judge, parse_host, parse_media_url

REFUSED = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fd12:3456::1"],
    "shared": ["100.64.0.1", "100.127.255.255"],
    "link-local": ["169.254.0.1", "fe80::1", "febf::1"],
    "metadata": [
        "169.254.169.254",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
    ],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarking": ["198.18.0.1", "198.19.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["192.0.0.1", "192.88.99.1", "240.0.0.1", "255.255.255.255", "2001:10::1", "2001:20::1"],
    "site-local": ["fec0::1"],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "6to4": ["2002:7f00:1::", "2002:808:808::1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "local NAT64": ["64:ff9b:1::a00:1"],
    "zone": ["fe80::1%eth0", "2606:4700::1%1"],
    "not public": ["4000::1", "5f00::1", "100::1", "1::1"],
}
EMBEDDED = {
    "::ffff:127.0.0.1": "loopback",
    "::ffff:7f00:1": "loopback",
    "::ffff:10.0.0.1": "private",
    "::ffff:224.0.0.1": "multicast",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::192.168.0.1": "private",
    "64:ff9b::a9fe:a9fe": "metadata",
}
PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.1", "193.0.0.1"]
PUBLIC += ["223.255.255.255", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in REFUSED.items() for t in texts])
def test_addresses_that_are_not_public_are_refused_with_the_reason(reason: str, text: str) -> None:
    assert judge(ipaddress.ip_address(text)) == reason


@pytest.mark.parametrize(("text", "reason"), EMBEDDED.items())
def test_an_ipv4_address_inside_an_ipv6_address_is_judged_itself(text: str, reason: str) -> None:
    assert judge(ipaddress.ip_address(text)) == reason


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_pass(text: str) -> None:
    assert judge(ipaddress.ip_address(text)) is None


def test_networks_of_the_option_lift_the_judgement_for_themselves_only() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd12::/16"), ipaddress.ip_network("::1")]
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::5", "::1", "8.8.8.8"):
        assert judge(ipaddress.ip_address(text), allowed) is None
    for text in ("10.2.0.1", "127.0.0.1", "fd13::5", "::ffff:10.2.0.1", "2002:a01:203::", "fd12::5%eth0"):
        assert judge(ipaddress.ip_address(text), allowed) is not None


def test_a_metadata_address_is_lifted_only_by_its_own_name() -> None:
    metadata = ipaddress.ip_address("169.254.169.254")
    assert judge(metadata, [ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("0.0.0.0/0")]) == "metadata"
    assert judge(metadata, [ipaddress.ip_network("169.254.169.254/32")]) is None


def test_random_addresses_that_pass_are_global_unicast() -> None:
    rng = np.random.default_rng(5)
    for _ in range(3000):
        for address in (
            ipaddress.ip_address(rng.bytes(4)),
            ipaddress.ip_address(rng.bytes(16)),
            ipaddress.ip_address(bytes(10) + b"\xff\xff" + rng.bytes(4)),
        ):
            if judge(address) is None:
                plain = getattr(address, "ipv4_mapped", None) or address
                assert plain.is_global
                assert not any((plain.is_private, plain.is_multicast, plain.is_reserved, plain.is_loopback))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.test", MediaUrl("http", "a.test", 80, "/")),
        ("HTTPS://A.Test./x/../y.png?q=1&r=%20#part", MediaUrl("https", "a.test", 443, "/x/../y.png?q=1&r=%20")),
        ("http://a.test:8080/", MediaUrl("http", "a.test", 8080, "/")),
        ("https://a.test?x=http://b@c", MediaUrl("https", "a.test", 443, "/?x=http://b@c")),
        ("http://a.test#@b.test/", MediaUrl("http", "a.test", 80, "/")),
        ("http://a.test/ü?ß", MediaUrl("http", "a.test", 80, "/%C3%BC?%C3%9F")),
        ("http://Bücher.test/", MediaUrl("http", "xn--bcher-kva.test", 80, "/")),
        ("http://my_bucket.a-b.test/", MediaUrl("http", "my_bucket.a-b.test", 80, "/")),
        ("http://8.8.8.8./", MediaUrl("http", "8.8.8.8", 80, "/")),
        ("http://[2606:4700:0:0::1]:81/", MediaUrl("http", "2606:4700::1", 81, "/")),
    ],
)
def test_plain_urls_are_taken_apart(url: str, expected: MediaUrl) -> None:
    assert parse_media_url(url) == expected
    assert parse_media_url(expected.text) == expected


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://a.test:80/", "a.test"),
        ("https://a.test:80/", "a.test:80"),
        ("https://[::1]/", "[::1]"),
        ("https://[::1]:8/", "[::1]:8"),
    ],
)
def test_the_authority_is_what_the_host_header_holds(url: str, authority: str) -> None:
    assert parse_media_url(url).authority == authority


ODD_URLS = {
    "empty": ["", " ", "http:", "http://", "http:///x", "http:x", "//a.test/x", "http:/a.test", "a.test"],
    "schemes": ["ftp://a.test/", "file:///etc/passwd", "gopher://a.test/", "httpx://a.test/", "blob:http://a.test/"],
    "paths": ["/etc/passwd", "../x.png", "C:\\x.png", "~/x"],
    "blanks": [" http://a.test/", "http://a.test/ ", "http://a.test/a b", "http://a.te st/", "http://a.test/\n"],
    "controls": [
        "http://a.test/\0",
        "http://a.test/\r\nHost: b",
        "http://a\t.test/",
        "http://a.test/\x7f",
        "\ufeffhttp:",
    ],
    "invisible": ["http://a\u200d.test/", "http://a\u00ad.test/", "http://a.test/\u202e", "http://a.test/\ud800"],
    "backslashes": ["http://a.test\\@b.test/", "http:\\\\a.test/", "http://a.test/\\b", "http:/\\a.test"],
    "users": ["http://a.test@b.test/", "http://user:pw@a.test/", "http://@a.test/", "http://a.test%40b.test/"],
    "numbers": [
        *("http://0x7f000001/", "http://0x7f.1/", "http://017700000001/", "http://0177.0.0.1/", "http://2130706433/"),
        *("http://127.1/", "http://127.0.1/", "http://127.0.0.01/", "http://127.0.0.256/", "http://1.2.3.4.5/"),
        *("http://0x7f.0.0.0x1/", "http://a.test.1/", "http://a.test.0x1/", "http://0/", "http://0x/"),
    ],
    "letters": [
        "http://①②⑦.⓪.⓪.①/",
        "http://１２７.0.0.1/",
        "http://127。0。0。1/",
        "http://ａ.test/",
        "http://faß.test/",
    ],
    "brackets": ["http://[::1/", "http://::1/", "http://[127.0.0.1]/", "http://[a.test]/", "http://[fe80::1%25eth0]/"],
    "names": [
        "http://a..test/",
        "http://.a.test/",
        "http://-a.test/",
        "http://a-.test/",
        "http://a.test../",
        "http://./",
    ],
    "signs": ["http://a.test;b.test/", "http://a,b/", "http://a.test%00/", "http://a*b/", "http://$a/", "http://a'b/"],
    "ports": [f"http://a.test:{port}/" for port in ("0", "99999", "80:90", "+80", " 80", "-1", "080", "8e1", "", "٨٠")],
    "long": ["http://" + "a" * 64 + ".test/", "http://" + "a." * 127 + "test/", "http://a.test/" + "x" * 9000],
}


@pytest.mark.parametrize("url", [url for urls in ODD_URLS.values() for url in urls], ids=lambda url: repr(url)[:60])
def test_odd_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(MediaSourceError) as error:
        parse_media_url(url)
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 250
    for part in ("a.test", "b.test", "127", "pw", "user:", "etc"):
        assert part not in text


def test_random_text_is_refused_or_of_one_form() -> None:
    """Whatever passes is ASCII and reads the same the second time."""
    rng = np.random.default_rng(3)
    pieces = [
        "http://",
        "https://",
        "a",
        "1",
        ".",
        ":",
        "80",
        "/",
        "?",
        "#",
        "@",
        "%",
        "[",
        "]",
        "ü",
        "\\",
        "0x",
        "-",
        "\0",
    ]
    num_passed = 0
    for _ in range(4000):
        url = "http://" * bool(rng.integers(2)) + "".join(rng.choice(pieces, rng.integers(0, 8)))
        try:
            place = parse_media_url(url)
        except MediaSourceError:
            continue
        num_passed += 1
        assert parse_media_url(place.text) == place
        assert place.text.isascii()
        assert parse_host(f"[{place.host}]" if ":" in place.host else place.host) == place.host
    assert num_passed > 100

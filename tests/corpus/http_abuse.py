"""H: HTTP itself. Each case is bytes on a bare connection; nobody stands in front of the server.

What takes several connections, time or a key is in test_http_abuse.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.corpus.case import Case, Expect, Wire, answered, case, refused
from tests.corpus.profiles import KEY, SMALL
from tests.corpus.routes import good_body
from tests.corpus.scene import Scene

BODY = json.dumps(good_body("chat")).encode()
HOST = "Host: 127.0.0.1"
JSON = "Content-Type: application/json"
MALFORMED = refused("invalid_http", "invalid_host", closes=True, within_s=0.25)
TOO_LARGE = refused("headers_too_large", status=431, closes=True)
NOT_FOUND = refused("not_found", status=404)
NO_METHOD = refused("method_not_allowed", status=405)
Make = Callable[[Scene], Wire]


def head(first: str, *lines: str, host: str | None = HOST, close: bool = True) -> bytes:
    every = [first, *([host] if host is not None else []), *lines, *(["Connection: close"] if close else [])]
    return "\r\n".join([*every, "", ""]).encode("latin-1")


def get(path: str = "/v1/models", *lines: str) -> bytes:
    return head(f"GET {path} HTTP/1.1", *lines)


def post(*lines: str, body: bytes = BODY, path: str = "/v1/chat/completions", length: int | None = -1) -> bytes:
    """`length` -1 is the true one, None sends none."""
    framing = [] if length is None else [f"Content-Length: {len(body) if length < 0 else length}"]
    return head(f"POST {path} HTTP/1.1", JSON, *framing, *lines) + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", lines: tuple[str, ...] = ()) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return post("Transfer-Encoding: chunked", *lines, body=body, length=None)


def _wire(data: bytes) -> Make:
    return lambda _: Wire(data)


def headers() -> dict[str, tuple[bytes, Expect]]:
    many = [f"X-{n}: y" for n in range(101)]
    return {
        "H01-17-kib": (get("/v1/models", "X: " + "a" * 17 * 1024), TOO_LARGE),
        "H02-101-headers": (get("/v1/models", *many), TOO_LARGE),
        "H02-10000-headers": (get("/v1/models", *many * 100), TOO_LARGE),
        "H03-target-9-kib": (get("/" + "a" * 9 * 1024), refused("uri_too_long", status=414, closes=True)),
        "H03-target-endless": (b"GET /" + b"a" * 2**20, refused("uri_too_long", status=414, closes=True)),
        "H04-endless-header": (
            head("GET / HTTP/1.1")[:-2] + b"X: " + b"a" * 2**20,
            refused("headers_too_large", status=(431, 400), closes=True),
        ),
        "H05-folded": (get("/v1/models", "X: a\r\n b"), MALFORMED),
        "H05-bare-lf": (get("/v1/models", "X: a\nY: b"), MALFORMED),
        "H05-bare-cr": (get("/v1/models", "X: a\rY: b"), MALFORMED),
        "H05-nul": (get("/v1/models", "X: a\0b"), MALFORMED),
        "H05-blank-before-colon": (get("/v1/models", "X : a"), MALFORMED),
        "H05-no-colon": (get("/v1/models", "nothing"), MALFORMED),
        "H05-name-not-ascii": (get("/v1/models", "X\xe9: a"), MALFORMED),
        "H05-empty-name": (get("/v1/models", ": a"), MALFORMED),
        "H05-first-line": (b"hello\r\n\r\n", MALFORMED),
        "H05-http-0.9": (b"GET /\r\n\r\n", MALFORMED),
        "H05-http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MALFORMED),
        "H05-http-3": (head("GET / HTTP/3.0"), MALFORMED),
        "H05-tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", MALFORMED),
        "H05-two-blanks": (b"GET  / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", MALFORMED),
        "H06-length-negative": (post("Content-Length: -1", length=None), MALFORMED),
        "H06-length-plus": (post("Content-Length: +5", length=None), MALFORMED),
        "H06-length-hex": (post("Content-Length: 0x5", length=None), MALFORMED),
        "H06-length-list": (post("Content-Length: 5, 5", length=None), MALFORMED),
        "H06-length-twice": (post("Content-Length: 5", "Content-Length: 6", length=None), MALFORMED),
        "H06-length-2e64": (
            post(f"Content-Length: {2**64}", length=None, body=b""),
            refused("content_too_large", "invalid_http", status=(400, 413), closes=True),
        ),
        "H06-length-huge": (
            post("Content-Length: " + "9" * 5000, length=None, body=b""),
            refused("content_too_large", "invalid_http", status=(400, 413), closes=True),
        ),
        "H06-length-empty": (post("Content-Length: ", length=None), MALFORMED),
    }


def framing() -> dict[str, tuple[bytes, Expect]]:
    bad_chunk = refused("invalid_http", "invalid_json", "cancelled", closes=True, within_s=1.0)
    return {
        "H07-chunk-2e64": (chunked(end=b"FFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"), _closed(413, 400)),
        "H07-chunk-negative": (chunked(end=b"-1\r\nabc\r\n0\r\n\r\n"), bad_chunk),
        "H07-chunk-0x": (chunked(end=b"0x5\r\nabcde\r\n0\r\n\r\n"), bad_chunk),
        "H07-chunk-word": (chunked(end=b"zz\r\nab\r\n0\r\n\r\n"), bad_chunk),
        "H07-chunk-no-end": (chunked(end=b"2\r\nabXX0\r\n\r\n"), bad_chunk),
        "H07-one-byte-chunks": (
            chunked(*[bytes([byte]) for byte in BODY.ljust(65_537, b" ")]),
            Expect((200, 400, 413), within_s=4.0),
        ),
        "H07-long-extension": (chunked(end=b"2;" + b"a" * 2**20 + b"\r\n{}\r\n0\r\n\r\n"), _closed(400, 413, 431)),
        "H07-good": (chunked(BODY[:10], BODY[10:]), answered()),
        "H07-trailers": (chunked(BODY, end=b"0\r\nX-Trailer: y\r\nContent-Length: 5\r\n\r\n"), Expect((200, 400))),
        "H08-both": (
            post("Transfer-Encoding: chunked", body=b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
            MALFORMED,
        ),
        "H08-identity": (post("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n", length=None), MALFORMED),
        "H08-xchunked": (post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n", length=None), MALFORMED),
        "H08-twice": (
            post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n", length=None),
            MALFORMED,
        ),
        "H08-blank": (post("Transfer-Encoding : chunked", body=b"0\r\n\r\n"), MALFORMED),
        "H08-tab": (post("Transfer-Encoding:\tchunked", body=b"0\r\n\r\n"), MALFORMED),
        "H08-vertical-tab": (post("Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), MALFORMED),
        "H08-http-1.0": (
            head("POST /v1/chat/completions HTTP/1.0", JSON, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            MALFORMED,
        ),
        "H10-range": (get("/v1/models", "Range: bytes=0-1,2-3,4-5"), answered()),
        "H10-multipart": (
            _typed("multipart/form-data; boundary=x", b"--x\r\n\r\ny\r\n--x--"),
            refused("unsupported_media_type", status=415),
        ),
        "H10-form": (
            _typed("application/x-www-form-urlencoded", b"a=b"),
            refused("unsupported_media_type", status=415),
        ),
        "H10-text": (_typed("text/plain", BODY), refused("unsupported_media_type", status=415)),
        "H10-no-type": (
            head("POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(BODY)}") + BODY,
            refused("unsupported_media_type", status=415),
        ),
        "H10-charset": (_typed("application/json; charset=utf-8", BODY), answered()),
        "H17-gzip": (post("Content-Encoding: gzip"), refused("unsupported_media_type", status=415)),
        "H17-br": (post("Content-Encoding: br"), refused("unsupported_media_type", status=415)),
        "H17-deflate": (post("Content-Encoding: deflate"), refused("unsupported_media_type", status=415)),
        "H17-unknown": (post("Content-Encoding: zebra"), refused("unsupported_media_type", status=415)),
        "H17-identity": (post("Content-Encoding: identity"), answered()),
    }


def _closed(*statuses: int) -> Expect:
    return Expect(statuses, closes=True, within_s=1.0)


def _typed(kind: str, body: bytes) -> bytes:
    return head("POST /v1/chat/completions HTTP/1.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}") + body


def hosts() -> dict[str, tuple[bytes, Expect]]:
    bad = refused("invalid_host", "invalid_http", "host_not_allowed", status=(400, 403))
    other = refused("host_not_allowed", status=403)
    rows: dict[str, str] = {
        "H19-path": "x/v1/public?",
        "H19-at": "a@b",
        "H19-empty": "",
        "H19-blank": "127.0.0.1 x",
        "H19-port-word": "127.0.0.1:abc",
        "H19-comma": "127.0.0.1, evil.test",
        "H19-slash": "127.0.0.1/health",
        "H19-quote": '"127.0.0.1"',
    }
    found = {id: (head("GET /v1/models HTTP/1.1", host=f"Host: {value}"), bad) for id, value in rows.items()}
    for name in (
        "evil.test",
        "evil.test:8000",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "169.254.169.254",
        "0.0.0.0",
        "[::2]",
    ):
        found[f"H20-{name}"] = (head("GET /v1/models HTTP/1.1", host=f"Host: {name}"), other)
    for name in (
        "localhost",
        "localhost:1",
        "127.0.0.1:9",
        "LOCALHOST",
        "localhost.",
        "[::1]:8000",
        "a.localhost",
        "127.1.2.3",
    ):
        found[f"H20-good-{name}"] = (head("GET /v1/models HTTP/1.1", host=f"Host: {name}"), answered())
    found["H19-none"] = (head("GET /v1/models HTTP/1.1", host=None), bad)
    found["H19-two"] = (head("GET /v1/models HTTP/1.1", "Host: 127.0.0.1"), bad)
    found["H19-two-different"] = (head("GET /v1/models HTTP/1.1", "Host: evil.test"), bad)
    return found


def targets() -> dict[str, tuple[bytes, Expect]]:
    either = refused("not_found", "method_not_allowed", "invalid_http", status=(400, 404, 405))
    found: dict[str, tuple[bytes, Expect]] = {
        f"H23-{method}": (head(f"{method} /v1/models HTTP/1.1"), NO_METHOD)
        for method in ("PUT", "DELETE", "PATCH", "FOO", "TRACE", "PROPFIND", "get")
    }
    found |= {
        f"H23-{method}-chat": (head(f"{method} /v1/chat/completions HTTP/1.1"), NO_METHOD)
        for method in ("GET", "PUT", "DELETE")
    }
    for path in (
        "//v1/models",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/V1/MODELS",
        "/v1/models;x=1",
        "/v1%2fmodels",
        "/v1/./models",
        "/%2fmetrics",
        "/metrics/",
        "/.env",
        "/admin",
        "/v1/embeddings",
        "/invocations",
        "/pause",
        "/sleep",
        "/collective_rpc",
        "/v1/load_lora_adapter",
        "/static/../app.py",
        "/playground/../../etc/passwd",
        "/playground/%2e%2e/app.js",
        "/\\..\\x",
    ):
        found[f"H23-path-{path}"] = (get(path), refused("not_found", "invalid_http", status=(400, 404)))
    found |= {
        "H23-connect": (head("CONNECT 127.0.0.1:80 HTTP/1.1"), either),
        "H31-options-star": (head("OPTIONS * HTTP/1.1"), either),
        "H23-slash": (get("/v1/models/"), refused("not_found", "model_not_found", status=404)),
        "H24-query": (get("/v1/models?x=" + "y" * 4000), answered()),
        "H24-fragment": (get("/v1/models#x"), Expect((200, 400, 404))),
        "H24-not-ascii": (get("/v1/\xe9"), refused("not_found", "invalid_http", status=(400, 404))),
        "H31-head": (head("HEAD /health HTTP/1.1"), answered()),
        "H31-get-with-body": (head("GET /v1/models HTTP/1.1", "Content-Length: 5") + b"hello", answered()),
        "H34-absolute": (head("GET http://127.0.0.1/v1/models HTTP/1.1"), answered()),
        "H34-absolute-other": (
            head("GET http://other.test/v1/models HTTP/1.1"),
            refused("host_not_allowed", "invalid_host", "not_found", status=(400, 403, 404)),
        ),
        "H34-forwarded": (
            get(
                "/v1/models",
                "X-Forwarded-For: 1.2.3.4",
                "X-Forwarded-Proto: https",
                "X-Forwarded-Prefix: /x",
                "Forwarded: for=1.2.3.4",
            ),
            answered(),
        ),
        "H34-rewrite": (get("/health", "X-Original-URL: /metrics", "X-Rewrite-URL: /metrics"), answered()),
        "H28-websocket": (
            get(
                "/v1/models",
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: AAAA",
            ),
            refused(status=(400, 404, 426)),
        ),
        "H28-h2c": (
            get("/v1/models", "Upgrade: h2c", "Connection: Upgrade", "HTTP2-Settings: AAMAAABkAAQAAP__"),
            Expect((200, 400, 426)),
        ),
        "H25-preflight": (
            head(
                "OPTIONS /v1/chat/completions HTTP/1.1",
                "Origin: https://evil.test",
                "Access-Control-Request-Method: POST",
            ),
            NO_METHOD,
        ),
        "H25-origin": (get("/v1/models", "Origin: https://evil.test"), Expect((200, 403))),
        "H25-origin-null": (get("/v1/models", "Origin: null"), Expect((200, 403))),
        "H26-expect-too-large": (
            post("Expect: 100-continue", body=b"", length=40 * 2**20),
            refused("content_too_large", status=413),
        ),
        "H26-expect-unknown": (post("Expect: 200-maybe"), Expect((200, 400, 417))),
        "H26-expect": (post("Expect: 100-continue"), answered()),
        "H18-id-address": (get("/v1/models", "X-Request-Id: 127.0.0.1:{p}"), answered()),
        "H18-id-long": (get("/v1/models", "X-Request-Id: " + "a" * 1000), answered()),
        "H18-id-odd": (get("/v1/models", "X-Request-Id: ../../x y\t\x7f"), Expect((200, 400))),
        "H18-rank": (
            post(
                "X-data-parallel-rank: 5", "X-Session-ID: x", "X-Vllm-Priority: 9", "endpoint-load-metrics-format: TEXT"
            ),
            answered(),
        ),
        "H32-agent": (get("/v1/models", "User-Agent: \x1b[31mred" + "a" * 5000), Expect((200, 400))),
        "H32-path": (get("/v1/\x1b[31mred"), Expect((400, 404))),
    }
    return found


def small() -> dict[str, tuple[bytes, Expect]]:
    """Where a key is needed and bodies are small."""
    key = f"Authorization: Bearer {KEY}"
    too_large = refused("content_too_large", status=413, closes=True)
    unauthorized = refused("invalid_api_key", status=401)
    over = SMALL.max_body_bytes + 1
    return {
        "H09-announced": (post(key, body=b"", length=over), too_large),
        "H09-chunked": (chunked(*[b" " * 16_384] * 32, lines=(key,)), too_large),
        "H09-endless-chunks": (chunked(*[b" " * 65_536] * 1000, lines=(key,)), too_large),
        "H26-expect-no-key": (post("Expect: 100-continue", body=b"", length=100), unauthorized),
        "H21-no-key-large": (post(body=b"", length=10**9), unauthorized),
        "H22-wrong": (get("/v1/models", "Authorization: Bearer wrong"), unauthorized),
        "H22-first-byte": (get("/v1/models", f"Authorization: Bearer x{KEY[1:]}"), unauthorized),
        "H22-last-byte": (get("/v1/models", f"Authorization: Bearer {KEY[:-1]}x"), unauthorized),
        "H22-prefix": (get("/v1/models", f"Authorization: Bearer {KEY[:-1]}"), unauthorized),
        "H22-longer": (get("/v1/models", f"Authorization: Bearer {KEY}x"), unauthorized),
        "H22-empty": (get("/v1/models", "Authorization: Bearer "), unauthorized),
        "H22-no-scheme": (get("/v1/models", f"Authorization: {KEY}"), unauthorized),
        "H22-scheme": (get("/v1/models", f"Authorization: Digest {KEY}"), unauthorized),
        "H22-both": (get("/v1/models", f"Authorization: Bearer {KEY}, Bearer x"), unauthorized),
        "H22-two-headers": (get("/v1/models", "Authorization: Bearer x", key), unauthorized),
        "H22-not-ascii": (get("/v1/models", "Authorization: Bearer \xe9\xff"), unauthorized),
        "H22-basic-broken": (get("/v1/models", "Authorization: Basic @@@@"), unauthorized),
        "H22-in-the-query": (get(f"/v1/models?api_key={KEY}&key={KEY}"), unauthorized),
        "H22-good": (get("/v1/models", key), answered()),
        "H22-lower-case-scheme": (get("/v1/models", f"authorization: bearer {KEY}"), answered()),
        "H19-host-public": (
            head("GET /v1/models HTTP/1.1", host="Host: 127.0.0.1/health?"),
            refused("invalid_host", "invalid_api_key", status=(400, 401)),
        ),
        "H23-path-no-key": (get("/health/../v1/models"), refused("invalid_api_key", "not_found", status=(401, 404))),
        "H23-double-slash-no-key": (
            get("//health//v1/models"),
            refused("invalid_api_key", "not_found", status=(401, 404)),
        ),
    }


def _make(data: bytes) -> Make:
    if b"{p}" not in data:
        return _wire(data)
    return lambda scene: Wire(data.replace(b"{p}", str(scene.forbidden_port).encode()))


CASES: tuple[Case, ...] = (
    *(
        case(id, _make(data), expect, routes=("chat",), flags="quick" if id in ("H08-both", "H19-path") else "")
        for id, (data, expect) in {**headers(), **framing(), **hosts(), **targets()}.items()
    ),
    *(
        case(
            id,
            _make(data),
            expect,
            routes=("chat",),
            profile="small",
            flags="quick" if id in ("H09-chunked", "H22-wrong") else "",
        )
        for id, (data, expect) in small().items()
    ),
)

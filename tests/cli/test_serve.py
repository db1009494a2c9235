"""`fovea serve`: what it takes, what it refuses before anything is loaded, and what it says when it is ready."""

from __future__ import annotations

import base64
import io
import json
import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fovea.cli.compat import IGNORED
from fovea.cli.main import main
from fovea.cli.options import SERVER_GROUPS, UsageError, server_options
from fovea.cli.pictures import pictures_folder
from fovea.cli.preflight import StartError, check_address, check_media_options, check_model, check_start
from fovea.cli.serve import banner, build_parser, read_config, read_faults
from fovea.core.errors import InvalidOptionError, ModelError, UnsupportedModelError
from fovea.core.server_config import ServerConfig
from tests.cli.support import needs_embedded
from tests.parity.support import Checkpoints


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In place of fovea.server.run: remembers with what it was called and says at once that it is ready."""
    module = SimpleNamespace(calls=[], ServerFacts=SimpleNamespace)

    def run(config: ServerConfig, **given: Any) -> int:
        module.calls.append((config, given))
        given["on_ready"](
            SimpleNamespace(url="http://127.0.0.1:8000", model_name=config.model, max_model_len=4096, device="cpu")
        )
        return 0

    module.run = run
    for name in ("fovea", "uvicorn", "asyncio"):  # put back what the command sets up
        target = logging.getLogger(name)
        monkeypatch.setattr(target, "handlers", list(target.handlers))
        monkeypatch.setattr(target, "level", target.level)
        monkeypatch.setattr(target, "propagate", target.propagate)
    monkeypatch.setitem(sys.modules, "fovea.server.run", module)
    return module


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_help_has_every_flag_in_groups_and_examples() -> None:
    text = build_parser().format_help()
    words = text.split()
    assert all(option.flag in words or option.flag + "," in words for option in server_options())
    positions = [text.index(f"\n{title}:\n") for title in SERVER_GROUPS]
    assert positions == sorted(positions)
    assert "FOVEA_API_KEY" in text
    assert "A flag goes before a variable, a variable before the file" in text
    assert "--tensor-parallel-size" not in text


@pytest.mark.parametrize("line", build_parser().epilog.splitlines()[1:])  # type: ignore[union-attr]
def test_the_examples_of_the_help_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("serve.yaml").write_text("port: 1")
    words = line.partition("#")[0].split()
    read_config(words[words.index("serve") + 1 :])


def test_the_help_answers_at_once() -> None:
    """Neither torch nor what a server is made of is loaded for it."""
    code = (
        "import sys\nfrom fovea.cli.main import main\n"
        "try:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'numpy', 'starlette', 'uvicorn', 'yaml', 'PIL', 'jinja2', 'msgspec', 'asyncio')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage: fovea serve")
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), {"model": "fovea-tiny", "port": 8000, "host": "127.0.0.1"}),
        (("org/model", "--port", "1"), {"model": "org/model", "port": 1}),
        (("--model", "org/model"), {"model": "org/model"}),
        (("org/model", "--model", "org/model"), {"model": "org/model"}),
        (("--limit_mm_per_prompt", "image=2"), {"limit_mm_per_prompt": {"image": 2}}),
        (("--limit-mm-per-prompt", '{"image": 2}'), {"limit_mm_per_prompt": {"image": 2}}),
        (("m/m", "--task", "generate", "--trust-remote-code"), {"task": "generate", "trust_remote_code": True}),
        (("--max-body-bytes=1M", "--no-playground"), {"max_body_bytes": 2**20, "playground": False}),
        (("--api-key", "a,b", "--api-key", "c"), {"api_key": ("a", "b", "c")}),
        (("--allowed-origins", '["https://a.test"]'), {"allowed_origins": ("https://a.test",)}),
    ],
)
def test_flags_become_a_config(argv: tuple[str, ...], expected: Mapping[str, Any]) -> None:
    config, notes = read_config(argv)
    assert {name: getattr(config, name) for name in expected} == expected
    assert notes == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--prot", "1"), "unknown option --prot. Did you mean '--port'?"),
        (("--api-keys", "x"), "Did you mean '--api-key'?"),
        (("--quantization", "awq"), "--quantization: invalid choice: 'awq'"),
        (("a/b", "c/d"), "2 words were given, MODEL is one."),
        (("a/b", "--model", "c/d"), "MODEL is given twice: 'a/b' and --model 'c/d'."),
        (("--api-key", ""), "--api-key is empty."),
        (("--api-key-file", ""), "--api-key-file is empty."),
        (("--port", "80x"), "'80x' is not a whole number"),
        (("-tp", "2"), "--tensor-parallel-size '2' is not supported; taken: 1."),
        (("--kv-cache-dtype", "fp8_e5m2"), "--kv-cache-dtype: invalid choice: 'fp8_e5m2'"),
        (("--task", "embed"), "--task: invalid choice: 'embed'"),
    ],
)
def test_mistakes_are_named(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_config(argv)
    assert message in str(caught.value)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="port is 70000; permitted: 0 to 65535"):
        read_config(["--port", "70000"])


@pytest.mark.parametrize("name", IGNORED)
def test_flags_of_vllm_without_meaning_here_are_taken_and_told(name: str) -> None:
    values = IGNORED[name]
    argv = [f"--{name}"] if values == ("",) else [f"--{name}", values[0]]
    config, notes = read_config(argv)
    assert config == ServerConfig()
    assert notes == [f"taken for compatibility, without effect here: {' '.join(argv)}."]
    assert not set(IGNORED) & {option.flag.removeprefix("--") for option in server_options()}


def test_several_such_flags_are_one_line_and_underscores_work() -> None:
    _, notes = read_config(["-tp", "1", "--disable_log_requests", "--swap_space=4"])
    told = "--tensor-parallel-size 1, --swap-space 4, --disable-log-requests"
    assert notes == [f"taken for compatibility, without effect here: {told}."]


def test_faults_are_a_json_object() -> None:
    assert read_faults({}) == read_faults({"FOVEA_FAULTS": ""}) == {}
    assert read_faults({"FOVEA_FAULTS": '{"kill": 7}'}) == {"kill": 7}
    for text in ("kill", "[1]"):
        with pytest.raises(UsageError, match="FOVEA_FAULTS is no JSON object"):
            read_faults({"FOVEA_FAULTS": text})


def test_a_taken_port_is_named_before_anything_is_loaded(
    taken_port: int, started: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "no/such-model", "--port", str(taken_port)]) == 1
    err = capsys.readouterr().err
    assert f"port {taken_port} on 127.0.0.1 is in use by another program." in err
    assert err.count("\n") == 1
    assert started.calls == []


def test_a_port_that_was_just_given_back_can_be_taken_again() -> None:
    """Connections of the last server that still linger are no reason to refuse."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)
    assert check_address(ServerConfig(port=port)) == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["", "no such host", "256.0.0.1", "\udcff", "a" * 300])
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(StartError, match="--host"):
        check_address(ServerConfig(host=host, port=0))


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(StartError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        check_address(ServerConfig(host="192.0.2.1", port=0))


def test_a_name_with_an_address_that_is_switched_off_can_be_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where IPv6 is off, localhost may still be ::1 too."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert check_address(ServerConfig(host="localhost", port=0)) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("host", "options", "warned"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, True),
        ("0.0.0.0", {"api_key": ("k",)}, False),
    ],
)
@needs_embedded
def test_an_open_server_is_told_loudly(host: str, options: dict[str, Any], warned: bool) -> None:
    warnings = check_start(ServerConfig(host=host, port=0, **options))
    assert bool(warnings) == warned
    assert not warned or ("without an API key" in warnings[0] and "FOVEA_API_KEY" in warnings[0])


def test_keys_are_checked_before_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(InvalidOptionError, match="cannot be read"):
        check_start(ServerConfig(port=0, api_key_file=str(file)))
    file.write_text("\n# comment\n  \n")
    with pytest.raises(InvalidOptionError, match="holds no key"):
        check_start(ServerConfig(port=0, api_key_file=str(file)))
    with pytest.raises(InvalidOptionError, match="a key is 1 to 512 visible ASCII characters"):
        check_start(ServerConfig(port=0, api_key=("a", "")))


def test_media_options_are_checked_before_the_start(tmp_path: Path) -> None:
    check_media_options(ServerConfig(allowed_local_media_path=str(tmp_path)))
    with pytest.raises(UsageError, match="--allowed-local-media-path .* is no folder"):
        check_media_options(ServerConfig(allowed_local_media_path=str(tmp_path / "none")))
    with pytest.raises(InvalidOptionError):
        check_media_options(ServerConfig(allowed_media_domains=("http://a.test/",)))


def copy_of(folder: Path, to: Path, *without: str) -> ServerConfig:
    for file in folder.iterdir():
        if not any(word in file.name for word in without):
            (to / file.name).write_bytes(file.read_bytes())
    return ServerConfig(model=str(to))


def test_a_model_without_a_chat_template_is_told_where_to_get_one(checkpoints: Checkpoints, tmp_path: Path) -> None:
    config = copy_of(checkpoints.folder("llava"), tmp_path, "chat_template")
    with pytest.raises(ModelError) as caught:
        check_model(config)
    said = str(caught.value)
    assert all(hint in said for hint in ("instruct", "model card", "--chat-template", "examples/template_llava.jinja"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    check_model(ServerConfig(model=str(tmp_path), chat_template=template))
    with pytest.raises(InvalidOptionError, match="neither an existing file nor Jinja text"):
        check_model(ServerConfig(model=str(tmp_path), chat_template="none.jinja"))


def test_folders_that_hold_no_model_are_told(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no config.json"):
        check_model(ServerConfig(model=str(tmp_path)))
    config = copy_of(checkpoints.folder("qwen2_vl"), tmp_path, "safetensors")
    with pytest.raises(ModelError, match="holds no weights"):
        check_model(config)
    check_model(ServerConfig(model=str(tmp_path), load_format="dummy"))
    with pytest.raises(InvalidOptionError, match="mm_processor_kwargs has 'max_pixel'"):
        check_model(ServerConfig(model=str(tmp_path), load_format="dummy", mm_processor_kwargs={"max_pixel": 1}))
    (tmp_path / "config.json").write_text('{"architectures": ["OtherForCausalLM"]}')
    with pytest.raises(UnsupportedModelError):
        check_model(ServerConfig(model=str(tmp_path)))


@needs_embedded
def test_it_starts_the_server_and_shows_the_banner_to_people(
    started: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOVEA_MAX_NUM_SEQS", "2")
    monkeypatch.setenv("FOVEA_FAULTS", '{"kill": 7}')
    assert main(["serve", "--port", "0", "--log-format", "human", "-tp", "1"]) == 0
    (config, given), *_ = started.calls
    assert (config.port, config.max_num_seqs, given["faults"]) == (0, 2, {"kill": 7})
    captured = capfd.readouterr()
    assert "Fovea" in captured.err
    assert "http://127.0.0.1:8000/v1" in captured.err
    assert "--tensor-parallel-size 1" in captured.err
    assert captured.out == ""


@needs_embedded
@pytest.mark.parametrize(("format", "is_terminal", "shown"), [("auto", False, 0), ("auto", True, 1), ("json", True, 0)])
def test_logs_for_machines_hold_no_banner(
    format: str, is_terminal: bool, shown: int, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["serve", "--port", "0", "--log-format", format]) == 0
    assert stream.getvalue().count("Try it, from another terminal") == shown


def test_the_banner_is_short_and_shows_no_key() -> None:
    text = banner(ServerConfig(api_key=("sk-secret",)), "http://127.0.0.1:8000", "fovea-tiny", 4096)
    assert "sk-secret" not in text
    assert '-H "Authorization: Bearer $FOVEA_API_KEY"' in text
    assert "fovea-tiny, up to 4,096 tokens" in text
    assert "http://127.0.0.1:8000/docs" in text
    assert len(text.splitlines()) < 16
    closed = banner(ServerConfig(playground=False), "http://[::1]:1", "m", 8)
    assert "playground" not in closed
    assert "/docs" not in closed
    assert "without a key" in closed


@pytest.mark.parametrize("model_name", ["fovea-tiny", 'it\'s \\n a `$HOME` "model" é'])
def test_the_command_of_the_banner_sends_what_it_shows(model_name: str, tmp_path: Path) -> None:
    """Run by a shell with a `curl` that prints what it is given."""
    if not shutil.which("base64"):
        pytest.skip("no base64 here")
    (tmp_path / "curl").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word" >> "$OUT"; done\ncat\n')
    (tmp_path / "curl").chmod(0o755)
    text = banner(ServerConfig(api_key=("x",)), "http://127.0.0.1:8000", model_name, 4096)
    line = next(line for line in text.splitlines() if "curl" in line)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FOVEA_API_KEY": "k", "OUT": str(tmp_path / "words")}
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, timeout=60, check=True)
    body = json.loads(done.stdout)
    assert body["model"] == model_name
    picture, question = body["messages"][0]["content"]
    assert question == {"type": "text", "text": "What is in this picture?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data, validate=True) == (pictures_folder() / "shapes.png").read_bytes()
    words = (tmp_path / "words").read_text().splitlines()
    assert "http://127.0.0.1:8000/v1/chat/completions" in words
    assert "Authorization: Bearer k" in words

"""`fovea run`: what it reads, what goes where, what it refuses before a model is loaded."""

from __future__ import annotations

import base64
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fovea.cli.main import main
from fovea.cli.run import split_words
from fovea.core.errors import ConfigError
from fovea.media import BytesSource
from tests.cli.support import SMALL, FakeLLM, command, environment, fovea, needs_embedded
from tests.media.web import Server, answer, says
from tests.parity.support import Checkpoints


class Pipe(io.TextIOWrapper):
    """A stdin that holds `data`."""

    def __init__(self, data: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def content(fake: type[FakeLLM]) -> list[Any]:
    messages, _ = fake.asked
    assert [message["role"] for message in messages] == ["user"]
    return list(messages[0]["content"])


def test_only_the_answer_is_on_stdout(fake: type[FakeLLM], picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--image", str(picture), "What is it?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "A red square.\n"
    assert captured.err.splitlines() == [
        f"fovea   {picture}: 100x70 pixels, shown as 112x56, 8 tokens",
        "fovea   30 prompt tokens, 3 answer tokens, first token after 0.06 s, then 4 tokens/s",
    ]


def test_the_answer_streams(fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def flush(self) -> None:
            shown.append(self.getvalue())

    shown: list[str] = []
    monkeypatch.setattr(sys, "stdout", Screen())
    assert main(["run", "-q", "What is it?"]) == 0
    assert list(dict.fromkeys(shown)) == ["A", "A red", "A red square.", "A red square.\n"]


def test_quiet_says_nothing_else(fake: type[FakeLLM], picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--quiet", "--image", str(picture), "What is it?"]) == 0
    assert capsys.readouterr() == ("A red square.\n", "")
    assert fake.made["use_tqdm"] is False


def test_pictures_come_before_the_question_in_the_order_given(fake: type[FakeLLM], picture: Path) -> None:
    second = picture.with_name("second.png")
    second.write_bytes(picture.read_bytes())
    assert main(["run", "-q", "--image", str(second), "same?", "--image", str(picture)]) == 0
    assert content(fake) == [
        {"type": "image", "image": second},
        {"type": "image", "image": picture},
        {"type": "text", "text": "same?"},
    ]


def test_without_a_picture_it_is_a_text_chat(fake: type[FakeLLM]) -> None:
    assert main(["run", "-q", "Hello there"]) == 0
    assert content(fake) == [{"type": "text", "text": "Hello there"}]


def test_a_data_url_is_a_picture(fake: type[FakeLLM], picture: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    assert main(["run", "-q", "--image", url, "What?"]) == 0
    assert content(fake)[0] == {"type": "image_url", "image_url": {"url": url}}


def test_a_picture_of_the_web_is_fetched_once_and_before_the_model(fake: type[FakeLLM], picture: Path) -> None:
    with Server(says(answer(picture.read_bytes()))) as server:
        flags = ["--allowed-media-networks", "127.0.0.0/8"]
        assert main(["run", "-q", *flags, "--image", server.url("/a.png?token=1"), "What?"]) == 0
        assert server.num_connections == 1
    part = content(fake)[0]
    assert part == {"type": "image", "image": BytesSource(picture.read_bytes())}


def test_a_picture_from_stdin(fake: type[FakeLLM], picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(picture.read_bytes()))
    assert main(["run", "-q", "--image", "-", "What?"]) == 0
    assert content(fake)[0] == {"type": "image", "image": picture.read_bytes()}


@pytest.mark.parametrize("argv", [[], ["-"], ["fovea-tiny"], ["fovea-tiny", "-"]])
def test_the_question_from_stdin(fake: type[FakeLLM], argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe("Wie heißt du?\n".encode()))
    assert main(["run", "-q", *argv]) == 0
    assert content(fake) == [{"type": "text", "text": "Wie heißt du?"}]


def test_options_reach_the_engine_and_the_sampler(fake: type[FakeLLM]) -> None:
    flags = ["--max_model_len", "1k", "--limit-mm-per-prompt", "image=2", "--no-enable-prefix-caching"]
    sampling = ["--temperature", "0.5", "--top-k", "5", "--stop", "a", "--stop", "b", "--presence-penalty", "-1"]
    assert main(["run", "-q", "org/name", "Hello", *flags, *sampling]) == 0
    options = {key: value for key, value in fake.made.items() if key not in ("use_tqdm", "max_num_seqs")}
    assert options == {
        "model": "org/name",
        "max_model_len": 1000,
        "limit_mm_per_prompt": {"image": 2},
        "enable_prefix_caching": False,
    }
    params = fake.asked[1]
    assert (params.temperature, params.top_k, params.stop_strings, params.presence_penalty) == (0.5, 5, ("a", "b"), -1)


def test_defaults_are_those_of_a_terminal(fake: type[FakeLLM]) -> None:
    assert main(["run", "-q", "Hello"]) == 0
    assert fake.made == {"use_tqdm": False, "max_num_seqs": 1}
    assert (fake.asked[1].max_tokens, fake.asked[1].temperature) == (256, 0.0)


def test_a_cut_answer_is_said_to_be_cut(
    fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    whole = FakeLLM.stream_chat

    def cut(self: FakeLLM, messages: Any, params: Any) -> Any:
        for output in whole(self, messages, params):
            yield replace(output, outputs=[replace(output.outputs[0], finish_reason="length")])

    monkeypatch.setattr(fake, "stream_chat", cut)
    assert main(["run", "Hello"]) == 0
    assert "The answer was cut after 3 tokens; --max-tokens allows more." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        ([], None, (None, None)),
        (["What?"], None, (None, "What?")),
        (["org/name"], None, ("org/name", None)),
        (["org/name", "yes/no"], None, ("org/name", "yes/no")),
        (["yes/no"], "org/name", ("org/name", "yes/no")),
        (["fovea-tiny"], None, ("fovea-tiny", None)),
        (["and/or what is it?"], None, (None, "and/or what is it?")),
    ],
)
def test_model_and_question_are_told_apart(words: list[str], model: str | None, expected: tuple[Any, Any]) -> None:
    assert split_words(words, model) == expected


def test_a_model_folder_is_a_model(tmp_path: Path) -> None:
    assert split_words([str(tmp_path)], None) == (None, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert split_words([str(tmp_path)], None) == (str(tmp_path), None)


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert split_words([str(path)], None) == (str(path), None)
    assert split_words([str(tmp_path / "other.gguf")], None) == (None, str(tmp_path / "other.gguf"))


def test_too_many_words_ask_for_quotation_marks() -> None:
    with pytest.raises(ConfigError, match="'What', 'is', 'it' were given|3 words were given"):
        split_words(["What", "is", "it"], None)


REFUSED = [
    (["--image", "nowhere.png", "What?"], 1, "The picture file 'nowhere.png' was refused"),
    (["--image", "text.png", "What?"], 1, "picture"),
    (["--image", "cut.png", "What?"], 1, "picture"),
    (["--image", "http://127.0.0.1/a.png", "What?"], 1, "allowed_media_networks"),
    (["--image", "https://a.test/", "--allowed-media-domains", "", "What?"], 1, "allowed_media_domains"),
    (["--allowed-media-networks", "10.0.0.1/8", "What?"], 2, "allowed_media_networks has '10.0.0.1/8'"),
    (["--image", "red.png", "--max-image-pixels", "100", "What?"], 1, "max_image_pixels"),
    (["--image", "-", "--image", "-", "What?"], 2, "stdin holds one picture"),
    (["--image", "-"], 2, "stdin holds the picture"),
    (["--max-tokens", "0", "What?"], 2, "max_tokens is 0; permitted: 1 or more"),
    (["--temperature", "-1", "What?"], 2, "temperature is -1; permitted: 0 to 100"),
    (["--block-size", "3", "What?"], 2, "a power of two"),
    (["--max-num-seqs", "0", "What?"], 2, "max_num_seqs is 0; permitted: 1 or more"),
    (["What", "is", "it?"], 2, "quotation marks"),
    (["   "], 2, "the question is empty"),
    ([], 2, "the question is empty"),
]


@pytest.mark.parametrize(("argv", "code", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_is_refused_before_a_model_is_loaded(
    argv: list[str],
    code: int,
    message: str,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("fovea.llm.LLM", never)
    monkeypatch.setattr(sys, "stdin", Pipe(b""))
    monkeypatch.chdir(picture.parent)
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(picture.read_bytes()[:20])
    assert main(["run", *argv]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fovea: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_terminal_without_a_question_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(b"", terminal=True))
    assert main(["run"]) == 2
    assert "there is no question" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["llava", "phi3_v", "qwen2_vl"])
def test_every_family_answers(
    variant: str, checkpoints: Checkpoints, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(checkpoints.folder(variant))
    argv = ["run", folder, "--image", str(picture), "--image", str(picture), "Hm?", "--max-tokens", "4"]
    assert main([*argv, "--max-model-len", "2048", "--kv-cache-memory-bytes", "48M", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert captured.err.count("red.png: 100x70 pixels") == 2
    assert "4 answer tokens" in captured.err


def test_a_model_without_a_chat_template_says_so(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in checkpoints.folder("llava").iterdir():
        if "chat_template" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["run", str(tmp_path), "Hello", *SMALL]) == 1
    assert "no chat template" in capsys.readouterr().err.splitlines()[-1]
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert main(["run", str(tmp_path), "Hello", "--max-tokens", "2", "--chat-template", template, *SMALL]) == 0


def test_unknown_models_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fovea-tini", "Hello"]) == 1
    assert "Did you mean 'fovea-tiny'?" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"architectures": ["OtherForCausalLM"]}')
    assert main(["run", str(tmp_path), "Hello"]) == 1
    assert '"fovea models" lists what is supported.' in capsys.readouterr().err


def test_it_pipes(checkpoints: Checkpoints, picture: Path) -> None:
    """As from a shell: a picture in, an answer out, nothing else on stdout."""
    argv = ["run", str(checkpoints.folder("qwen2_vl")), "--image", "-", "Hm?", "--max-tokens", "3", *SMALL]
    done = fovea(*argv, stdin=picture.read_bytes())
    assert done.returncode == 0, done.stderr
    assert b"fovea" not in done.stdout
    assert b"memory plan" in done.stderr
    quiet = fovea(*argv, "--quiet", stdin=picture.read_bytes())
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")


def endless(folder: Path) -> list[str]:
    return command(
        "run", folder, "Hello", "-q", "--ignore-eos", "--max-tokens", "30000", "--kv-cache-memory-bytes", "64M"
    )


@contextmanager
def answering(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `fovea run` in the middle of an endless answer; gone afterwards, whatever the test found.

    What runs the tests may itself ignore SIGINT (a shell's background job does) and children inherit that.
    """
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(endless(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    finally:
        signal.signal(signal.SIGINT, inherited)
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_while_answering_is_quiet(checkpoints: Checkpoints) -> None:
    with answering(checkpoints.folder("qwen2_vl")) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, b"")


def test_a_closed_pipe_is_quiet(checkpoints: Checkpoints) -> None:
    with answering(checkpoints.folder("qwen2_vl")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert (process.wait(timeout=60), err) == (141, b"")


@needs_embedded
def test_the_embedded_model_answers(picture: Path) -> None:
    done = fovea("run", "-q", "--image", picture, "What is in this picture?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

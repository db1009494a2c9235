"""Options from variables and files: which goes first, and how a mistake in each is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fovea.cli.options import UsageError, engine_options, server_options
from fovea.cli.run import read_request
from fovea.cli.serve import read_config
from fovea.cli.sources import Settings, read_settings
from fovea.core.errors import ConfigError, InvalidOptionError

KEY = "sk-0123456789-never-shown"


def settings(environment: dict[str, str] | None = None, file: Path | None = None) -> Settings:
    return read_settings(str(file) if file else None, environment or {}, server_options())


def from_variable(**environment: str) -> dict[str, Any]:
    return dict(settings(environment).values)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "serve.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(write: Any) -> None:
    file = write("max-num-seqs: 1\nport: 1\nseed: 1\nmodel: from/file\n")
    variables = {"FOVEA_PORT": "2", "FOVEA_SEED": "2", "FOVEA_MODEL": "from/variable"}
    config, notes = read_config(["--config", str(file), "--seed", "3"], variables)
    assert (config.max_num_seqs, config.port, config.seed, config.block_size) == (1, 2, 3, 16)
    assert config.model == "from/variable"
    assert read_config(["from/word", "--config", str(file)], variables)[0].model == "from/word"
    assert notes == []


def test_lists_are_replaced_and_not_joined(write: Any) -> None:
    file = write("allowed-hosts: [a, b]")
    assert read_config(["--config", str(file)])[0].allowed_hosts == ("a", "b")
    assert read_config(["--config", str(file)], {"FOVEA_ALLOWED_HOSTS": "c"})[0].allowed_hosts == ("c",)
    argv = ["--config", str(file), "--allowed-hosts", "d", "--allowed-hosts", "e"]
    assert read_config(argv, {"FOVEA_ALLOWED_HOSTS": "c"})[0].allowed_hosts == ("d", "e")


@pytest.mark.parametrize("option", server_options(), ids=lambda option: option.name)
def test_every_option_has_a_variable(option: Any) -> None:
    text = {bool: "yes", int: "64M", float: "0.5", tuple: "10.0.0.0/8", str: "x"}.get(option.kind, '{"image": 2}')
    text = option.choices[-1] if option.choices else {"port": "80", "n": "2", "block_size": "32"}.get(option.name, text)
    text = {"max_n": "2", "max_image_aspect": "3", "max_video_frames": "64"}.get(option.name, text)
    assert set(from_variable(**{option.variable: text})) == {option.name}
    assert settings({option.variable: text}).warnings == ()


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("FOVEA_MAX_MODEL_LEN", "4k", {"max_model_len": 4000}),
        ("FOVEA_RESIZE_ON_DEVICE", "off", {"resize_on_device": False}),
        ("FOVEA_RESIZE_ON_DEVICE", "auto", {"resize_on_device": None}),
        ("FOVEA_MAX_MODEL_LEN", "auto", {"max_model_len": None}),
        ("FOVEA_LIMIT_MM_PER_PROMPT", "image=2", {"limit_mm_per_prompt": {"image": 2}}),
        ("FOVEA_PLAYGROUND", "off", {"playground": False}),
        ("FOVEA_API_KEY", "a, b", {"api_key": ("a", "b")}),
        ("VLLM_API_KEY", "a,b", {"api_key": ("a,b",)}),
        ("FOVEA_ALLOWED_MEDIA_DOMAINS", "", {"allowed_media_domains": ()}),
        ("FOVEA_MAX_MODEL_LEN", "", {}),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "7", {"media_fetch_timeout_s": 7.0}),
        ("FOVEA_IMAGE_FETCH_TIMEOUT", "8", {"media_fetch_timeout_s": 8.0}),
        ("FOVEA_PORT", "tcp://10.0.0.1:80", {}),
        ("VLLM_PORT", "9", {}),
    ],
)
def test_variables_are_read(variable: str, text: str, expected: dict[str, Any]) -> None:
    found = settings({variable: text})
    assert dict(found.values) == expected
    assert found.warnings == ()


def test_an_options_own_variable_goes_before_its_other_names() -> None:
    names = ("FOVEA_MEDIA_FETCH_TIMEOUT_S", "FOVEA_IMAGE_FETCH_TIMEOUT", "VLLM_IMAGE_FETCH_TIMEOUT")
    for first in range(len(names)):
        given = {name: str(i + 1) for i, name in enumerate(names) if i >= first}
        assert from_variable(**given) == {"media_fetch_timeout_s": first + 1.0}
    assert from_variable(FOVEA_API_KEY="ours", VLLM_API_KEY="theirs") == {"api_key": ("ours",)}


def test_unknown_variables_are_told_once_with_the_nearest_name() -> None:
    found = settings({"FOVEA_MAX_MODLE_LEN": "8", "FOVEA_DEBUG": "1", "FOVEA_FAULTS": "{}", "HOME": "x"})
    assert found.values == {}
    assert len(found.warnings) == 1
    assert "unknown variable FOVEA_MAX_MODLE_LEN" in found.warnings[0]
    assert "Did you mean 'FOVEA_MAX_MODEL_LEN'?" in found.warnings[0]


def test_what_kubernetes_adds_for_a_service_is_not_taken_for_options() -> None:
    names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR", "WEB_PORT")
    found = settings({f"FOVEA_{name}": "10.0.0.1" for name in names} | {"FOVEA_PORT": "tcp://10.0.0.1:8000"})
    assert (found.values, found.warnings) == ({}, ())


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("FOVEA_MAX_MODEL_LEN", "many", "FOVEA_MAX_MODEL_LEN: 'many' is not a whole number"),
        ("FOVEA_PORT", "99999", "FOVEA_PORT: port is 99999; permitted: 0 to 65535."),
        ("FOVEA_DTYPE", "bfloat61", "Did you mean 'bfloat16'?"),
        ("FOVEA_PLAYGROUND", "perhaps", "FOVEA_PLAYGROUND: 'perhaps' is none of 1, true"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "soon", "VLLM_IMAGE_FETCH_TIMEOUT: 'soon' is not a number"),
        ("FOVEA_API_KEY", "", "FOVEA_API_KEY is set but empty."),
        ("FOVEA_API_KEY", " , ", "FOVEA_API_KEY is set but empty."),
        ("VLLM_API_KEY", "", "VLLM_API_KEY is set but empty."),
        ("FOVEA_API_KEY_FILE", "", "FOVEA_API_KEY_FILE is set but empty."),
    ],
)
def test_mistakes_in_variables_name_the_variable(variable: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings({variable: text})
    assert message in str(caught.value)


def test_a_file_gives_typed_values_with_dashes_or_underscores(write: Any) -> None:
    file = write("""
# comments are fine
model: Qwen/Qwen2-VL-2B-Instruct
max-model-len: 8k
max_num_seqs: 4
limit-mm-per-prompt: {image: 4}
mm-processor-kwargs: max_pixels=401408
enforce-eager: true
media-fetch-timeout-s: 3
served-model-name: [a, b]
api-key: "12345"
allowed-media-domains: a.test, b.test
kv-cache-memory-bytes: auto
playground: off
revision: "7"
""")
    assert dict(settings(file=file).values) == {
        "model": "Qwen/Qwen2-VL-2B-Instruct",
        "max_model_len": 8000,
        "max_num_seqs": 4,
        "limit_mm_per_prompt": {"image": 4},
        "mm_processor_kwargs": {"max_pixels": 401408},
        "enforce_eager": True,
        "media_fetch_timeout_s": 3,
        "served_model_name": ("a", "b"),
        "api_key": ("12345",),
        "allowed_media_domains": ("a.test", "b.test"),
        "kv_cache_memory_bytes": None,
        "playground": False,
        "revision": "7",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(text: str, write: Any) -> None:
    assert settings(file=write(text)) == Settings({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-modle-len: 8", "has the unknown key 'max-modle-len'. Did you mean 'max-model-len'?"),
        ("max_modle_len: 8", "Did you mean 'max_model_len'?"),
        ("config: other.yaml", "has the unknown key 'config'."),
        ("port: 70000", "key 'port': port is 70000; permitted: 0 to 65535."),
        ("port: many", "key 'port': 'many' is not a whole number"),
        ("max-num-seqs: 1.5", "key 'max-num-seqs': max_num_seqs must be a whole number, not 1.5."),
        ("max-num-seqs: true", "max_num_seqs must be a whole number, not True."),
        ("max-num-seqs:", "max_num_seqs must be a whole number, not None."),
        ("revision: 2024", 'Put it in quotation marks ("...").'),
        ("limit-mm-per-prompt: {imgae: 2}", "limit_mm_per_prompt has 'imgae'"),
        ("limit-mm-per-prompt: [2]", "limit_mm_per_prompt must be a mapping"),
        ("port: 1\nport: 2", "in line 2 is not YAML that can be read: 'port' stands there twice."),
        ("max-model-len: 1\nmax_model_len: 2", "twice, with dashes and with underscores."),
        ("a: &x [1]\nb: *x", "in line 2 is not YAML that can be read: it refers to an anchor"),
        ("port: [", "is not YAML that can be read"),
        ("port: !!python/object/apply:os.getcwd []", "is not YAML that can be read"),
        ("- port", "must hold a mapping such as max-model-len: 4096, not a list."),
        ("just text", "must hold a mapping"),
        ("8000: port", "has the key '8000', which is no name of an option."),
        ("[" * 5000, "is not YAML that can be read"),
        ("port: \x07", "is not YAML that can be read"),
        (b"\xff\xfe\xff", "is not UTF-8 text."),
        ("#" * 300_000, "is larger than 256 KiB"),
        ("api-key:", "key 'api-key': it is empty."),
        ("api-key: []", "key 'api-key': it is empty."),
        ("api-key-file: ''", "key 'api-key-file': it is empty."),
        ("tensor-parallel-size: 2", "tensor-parallel-size '2' is not supported; taken: 1."),
        ("enable-chunked-prefill: false", "enable-chunked-prefill cannot be turned off."),
    ],
)
def test_mistakes_in_files_name_the_file_and_the_key(text: str | bytes, message: str, write: Any) -> None:
    file = write(text)
    with pytest.raises(UsageError) as caught:
        settings(file=file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value) or "not supported" in message or "turned off" in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            settings(file=path)
        assert str(path) in str(caught.value)


def test_the_file_itself_can_be_named_by_a_variable(write: Any) -> None:
    assert settings({"FOVEA_CONFIG": str(write("port: 7"))}).values == {"port": 7}


@pytest.mark.parametrize(
    ("argv", "environment", "file"),
    [
        (["--api-key", KEY], {}, ""),
        ([], {"FOVEA_API_KEY": KEY}, ""),
        ([], {"VLLM_API_KEY": KEY}, ""),
        ([], {}, f"api-key: {KEY}"),
    ],
)
def test_a_config_shows_no_key(argv: list[str], environment: dict[str, str], file: str, write: Any) -> None:
    config, notes = read_config([*argv, "--config", str(write(file))], environment)
    assert config.api_key == (KEY,)
    assert KEY not in f"{config!r} {config} {notes}"


@pytest.mark.parametrize(
    ("argv", "environment", "file"),
    [
        (["--api-key", f'["{KEY}", 1]'], {}, ""),
        (["model", "--api-key", "one", KEY], {}, ""),
        ([], {"FOVEA_API_KEY": f'["{KEY}"'}, ""),
        ([], {}, f"api-key: {{a: {KEY}}}"),
        ([], {}, f"api-key: [{KEY}, 5]"),
        (["--prot", "1", "--api-key", KEY], {"FOVEA_API_KEY": KEY}, f"api-key: {KEY}"),
    ],
)
def test_no_error_shows_a_key(argv: list[str], environment: dict[str, str], file: str, write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config([*argv, "--config", str(write(file))], environment)
    assert KEY not in str(caught.value)


def test_run_takes_the_same_sources_and_leaves_a_servers_options(write: Any, capsys: Any) -> None:
    file = write("port: 9\nmax-model-len: 512\nmax-num-seqs: 3\nmodel: org/file")
    variables = {"FOVEA_MAX_MODEL_LEN": "1024", "FOVEA_HOST": "0.0.0.0", "FOVEA_SEDE": "1"}
    request = read_request(["--config", str(file), "--seed", "5", "Hello?"], environment=variables)
    assert dict(request.config) == {"model": "org/file", "max_model_len": 1024, "max_num_seqs": 3, "seed": 5}
    assert "Did you mean 'FOVEA_SEED'?" in request.warnings[0]
    assert read_request(["org/word", "Hello?"], environment={"FOVEA_MODEL": "org/x"}).config["model"] == "org/word"
    with pytest.raises(UsageError, match="unknown key 'prot'"):
        read_request(["--config", str(write("prot: 9")), "Hello?"])


def test_options_of_both_kinds_together_are_still_checked(write: Any) -> None:
    with pytest.raises(InvalidOptionError, match="block_size is 3"):
        read_config(["--block-size", "3"])
    assert {option.name for option in engine_options()} < {option.name for option in server_options()}


def test_mappings_from_variables_may_be_json() -> None:
    found = from_variable(FOVEA_LIMIT_MM_PER_PROMPT=json.dumps({"image": 3, "video": 0}))
    assert found == {"limit_mm_per_prompt": {"image": 3, "video": 0}}

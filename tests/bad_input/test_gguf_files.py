"""GGUF files that lie, are cut short or hold something else: a typed error, soon, and no memory on their word."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")

from fovea.cli.preflight import check_model  # noqa: E402
from fovea.core.config import EngineConfig, ModelImpl  # noqa: E402
from fovea.core.errors import (  # noqa: E402
    FoveaError,
    InvalidOptionError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
    WeightsError,
)
from fovea.core.server_config import ServerConfig  # noqa: E402
from fovea.families import gguf_file  # noqa: E402
from fovea.families.registry import load_family  # noqa: E402
from fovea.llm import LLM  # noqa: E402
from fovea.models.folder import check_format, find_model  # noqa: E402
from fovea.models.weights import build_empty, check_checkpoint, load_weights  # noqa: E402
from fovea.prompt.template import ChatTemplate  # noqa: E402
from fovea.prompt.tokenizer import Tokenizer  # noqa: E402
from tests.oracle.gguf_files import write  # noqa: E402

MIB = 1024**2
KEYS: Mapping[str, tuple[str, Any]] = {
    "llama.block_count": ("uint32", 1),
    "llama.context_length": ("uint32", 64),
    "llama.embedding_length": ("uint32", 32),
    "llama.feed_forward_length": ("uint32", 64),
    "llama.attention.head_count": ("uint32", 4),
    "llama.attention.head_count_kv": ("uint32", 2),
    "llama.attention.layer_norm_rms_epsilon": ("float32", 1e-5),
    "tokenizer.ggml.model": ("string", "gpt2"),
    "tokenizer.ggml.pre": ("string", "smollm"),
    "tokenizer.ggml.tokens": ("array", ["a", "b", "ab", "<|end|>"]),
    "tokenizer.ggml.token_type": ("array", [1, 1, 1, 3]),
    "tokenizer.ggml.merges": ("array", ["a b"]),
    "tokenizer.ggml.eos_token_id": ("uint32", 3),
    "tokenizer.chat_template": ("string", "{{ messages[0]['content'] }}"),
}
TENSORS: Mapping[str, tuple[int, ...]] = {
    "token_embd.weight": (4, 32),
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
}
REQUIRED = [key for key in KEYS if key not in ("llama.attention.head_count_kv", "tokenizer.ggml.pre")]
OPTIONAL = ("tokenizer.ggml.eos_token_id", "tokenizer.chat_template")


def model(
    path: Path,
    keys: Mapping[str, tuple[str, Any] | None] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
    dtype: Any = np.float32,
) -> Path:
    """A model of one layer with metadata and shapes of tensors replaced; None leaves one out."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, entry in {**KEYS, **(keys or {})}.items():
        if entry is not None:
            getattr(writer, f"add_{entry[0]}")(key, entry[1])
    for name, shape in {**TENSORS, **(tensors or {})}.items():
        if shape is not None:
            writer.add_tensor(name, np.ones(shape, dtype if len(shape) > 1 else np.float32))
    write(writer)
    return path


def read_all(path: Path) -> None:
    """Everything that is read of a file before a model runs."""
    family = load_family(path)
    Tokenizer.load(path)
    ChatTemplate.load(path)
    check_checkpoint(path, family.spec, family.weight_map())


def refusal(path: Path, kind: type[FoveaError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        read_all(path)
    return str(caught.value)


def test_the_file_that_the_others_are_made_of_is_fine(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    read_all(path)
    with LLM(str(path), device="cpu", kv_cache_memory_bytes=MIB, use_tqdm=False) as llm:
        assert llm.generate("ab", use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.parametrize("key", [key for key in REQUIRED if key not in OPTIONAL])
def test_missing_metadata_is_refused_by_name(tmp_path: Path, key: str) -> None:
    assert repr(key) in refusal(model(tmp_path / "model.gguf", {key: None}))


@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_a_wrong_type_are_refused_by_name(tmp_path: Path, key: str) -> None:
    wrong: tuple[str, Any] = ("bool", True) if KEYS[key][0] != "bool" else ("string", "x")
    assert repr(key) in refusal(model(tmp_path / "model.gguf", {key: wrong}))


@pytest.mark.parametrize(
    ("keys", "kind", "says"),
    [
        ({"llama.block_count": ("uint32", 2**31)}, ModelError, "from 1 to 1,024"),
        ({"llama.block_count": ("uint32", 2)}, WeightsError, "blk.1.attn_norm.weight"),
        ({"llama.block_count": ("int32", -1)}, ModelError, "-1"),
        ({"llama.embedding_length": ("uint64", 2**60)}, ModelError, "from 1 to"),
        ({"llama.embedding_length": ("uint32", 2**30)}, WeightsError, "token_embd.weight"),
        ({"llama.feed_forward_length": ("uint32", 2**30)}, WeightsError, "blk.0.ffn_up.weight"),
        ({"llama.feed_forward_length": ("array", [64, 32])}, UnsupportedModelError, "differs between layers"),
        ({"llama.attention.head_count": ("uint32", 0)}, ModelError, "head_count"),
        ({"llama.attention.head_count_kv": ("uint32", 3)}, ModelError, "attn_k"),
        ({"llama.attention.key_length": ("uint32", 2**31)}, ModelError, "key_length"),
        ({"llama.attention.value_length": ("uint32", 4)}, UnsupportedModelError, "value_length"),
        ({"llama.rope.dimension_count": ("uint32", 4)}, UnsupportedModelError, "dimension_count"),
        ({"llama.attention.layer_norm_rms_epsilon": ("float32", float("nan"))}, ModelError, "rms_norm_eps"),
        ({"llama.rope.freq_base": ("float32", -1.0)}, ModelError, "rope_theta"),
        ({"llama.rope.scaling.type": ("string", "yarn")}, UnsupportedModelError, "'yarn'"),
        ({"llama.rope.scaling.factor": ("float32", float("inf"))}, ModelError, "factor"),
        ({"llama.expert_count": ("uint32", 8)}, UnsupportedModelError, "expert_count' is 8"),
        ({"llama.attention.scale": ("float32", 0.5)}, UnsupportedModelError, "llama.attention.scale"),
        ({"split.count": ("uint16", 3)}, UnsupportedModelError, "one of 3 parts"),
        ({"general.type": ("string", "adapter")}, UnsupportedModelError, "'adapter'"),
        ({"tokenizer.ggml.tokens": ("array", ["a"] * 5)}, WeightsError, "embeddings for 4"),
        ({"tokenizer.ggml.eos_token_id": ("uint32", 9)}, ModelError, "eos_token_id' is 9"),
        ({"tokenizer.chat_template": ("string", "{% for")}, ModelError, "template"),
        ({"general.alignment": ("uint32", 3)}, WeightsError, "power of two"),
        ({"general.alignment": ("string", "32")}, WeightsError, "power of two"),
    ],
)
def test_contradictions_and_what_is_not_implemented_are_refused(
    tmp_path: Path, keys: dict[str, Any], kind: type[FoveaError], says: str
) -> None:
    assert says in refusal(model(tmp_path / "model.gguf", keys), kind)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(_text("llama"), _text("mamba"), 1))
    assert "'mamba'; supported in GGUF files: llama, qwen2, qwen3" in refusal(path, UnsupportedModelError)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        *[({name: None}, name) for name in TENSORS],
        ({"blk.0.attn_q.bias": (32,)}, "attn_output.bias"),
        ({"blk.0.attn_rot.weight": (32,)}, "does not know: 'blk.0.attn_rot.weight'"),
        ({"blk.1.attn_norm.weight": (32,)}, "does not know: 'blk.1.attn_norm.weight'"),
        ({"blk.0.attn_v.weight": (32, 32)}, "'blk.0.attn_v.weight' has shape [32, 32]"),
        ({"blk.0.ffn_down.weight": (64, 32)}, "'blk.0.ffn_down.weight' has shape [64, 32]"),
        ({"output.weight": (5, 32)}, "'output.weight' has shape [5, 32]"),
        ({"rope_freqs.weight": (3,)}, "must have 4"),
        ({"rope_freqs.weight": (2, 2)}, "short row"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(
    tmp_path: Path, tensors: dict[str, Any], says: str
) -> None:
    assert says in refusal(model(tmp_path / "model.gguf", tensors=tensors))


def test_a_type_that_cannot_be_dequantised_is_refused_by_name(tmp_path: Path) -> None:
    said = refusal(model(tmp_path / "model.gguf", dtype=np.int32), UnsupportedModelError)
    assert "of ggml's type I32" in said


# --- bytes ------------------------------------------------------------------------------------------------------------


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(
    num_tensors: int = 0, num_keys: int = 0, rest: bytes = b"", *, magic: bytes = b"GGUF", version: int = 3
) -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def key(name: str, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


HUGE = struct.pack("<Q", 2**63)
LISTED = struct.pack("<I", 8) + struct.pack("<Q", 2**21 + 1)
HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "magic": (header(magic=b"GGML"), "no GGUF file"),
    "version": (header(version=1), "version 1"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "tensors": (header(num_tensors=2**63), "9,223,372,036,854,775,808 tensors"),
    "keys": (header(num_keys=2**63), "metadata keys"),
    "no keys": (header(num_keys=3), "cut short"),
    "key": (header(num_keys=1, rest=HUGE), "limit is 256"),
    "text": (header(num_keys=1, rest=key("a", 8, HUGE)), "limit is 4,194,304"),
    "text beyond the end": (header(num_keys=1, rest=key("a", 8, struct.pack("<Q", 2**20))), "cut short"),
    "no text": (header(num_keys=1, rest=key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "UTF-8"),
    "list": (header(num_keys=1, rest=key("a", 9, LISTED)), "claims 2,097,153 elements"),
    "list beyond the end": (header(num_keys=1, rest=key("a", 9, struct.pack("<IQ", 12, 2**20))), "cut short"),
    "texts beyond the end": (header(num_keys=1, rest=key("a", 9, struct.pack("<IQ", 8, 2**20))), "cut short"),
    "list of lists": (header(num_keys=1, rest=key("a", 9, struct.pack("<IQ", 9, 1) * 50)), "unsupported type 9"),
    "list of what": (header(num_keys=1, rest=key("a", 9, struct.pack("<IQ", 77, 1))), "unsupported type 77"),
    "what": (header(num_keys=1, rest=key("a", 13, b"\0" * 8)), "unknown type 13"),
    "bool": (header(num_keys=1, rest=key("a", 7, b"\2")), "neither false nor true"),
    "twice": (header(num_keys=2, rest=key("a", 7, b"\1") * 2), "'a' twice"),
    "dimensions": (header(num_tensors=1, rest=tensor("t", [1] * 5)), "5 dimensions"),
    "no dimensions": (header(num_tensors=1, rest=tensor("t", [])), "0 dimensions"),
    "no values": (header(num_tensors=1, rest=tensor("t", [4, 0]) + b"\0" * 99), "does not lie inside"),
    "vast": (header(num_tensors=1, rest=tensor("t", [2**40, 2**40]) + b"\0" * 99), "does not lie inside"),
    "beyond": (header(num_tensors=1, rest=tensor("t", [4], offset=2**62) + b"\0" * 99), "does not lie inside"),
    "aslant": (header(num_tensors=1, rest=tensor("t", [4], offset=4) + b"\0" * 99), "does not lie inside"),
    "same tensor": (header(num_tensors=2, rest=tensor("t", [4]) * 2 + b"\0" * 99), "tensor 't' twice"),
    "no architecture": (header(), "general.architecture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_lie_are_refused_without_memory(tmp_path: Path, name: str) -> None:
    data, says = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert says in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = model(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    header_bytes = whole.index(b"blk.0.ffn_down.weight")
    for size in [*range(4, header_bytes, 7), *range(header_bytes, len(whole), len(whole) // 40), len(whole) - 32]:
        path.write_bytes(whole[:size])
        gguf_file._read.cache_clear()
        assert "model.gguf" in refusal(path), size


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    """Else a small file could claim any number of values."""
    path = model(tmp_path / "model.gguf")
    entry = gguf_file.read_gguf(path).tensors
    first = min(one.start for one in entry.values())
    place = entry["blk.0.ffn_up.weight"].start - first
    old, new = (struct.pack("<IQ", 0, offset) for offset in (place, place - 64))
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    gguf_file._read.cache_clear()
    assert "overlap" in refusal(path)


def test_changed_bytes_never_give_anything_but_a_typed_error(tmp_path: Path) -> None:
    whole = model(tmp_path / "whole.gguf").read_bytes()
    end = whole.index(b"blk.0.ffn_down.weight") + 80
    rng, path, refused = random.Random(11), tmp_path / "model.gguf", 0
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(4, end)] = rng.choice([0, 1, 2, 8, 9, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        path.write_bytes(data)
        gguf_file._read.cache_clear()
        try:
            read_all(path)
        except FoveaError:
            refused += 1
    assert 100 < refused < 250


def test_values_that_are_no_numbers_load_like_any_others(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    data = bytearray(path.read_bytes())
    data[-1024:] = b"\xff" * 1024
    path.write_bytes(data)
    family = load_family(path)
    loaded = build_empty(family.spec, torch.bfloat16, torch.device("cpu"))
    load_weights(loaded, path, family.weight_map(), use_tqdm=False)


# --- what is named ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none.gguf", "no GGUF file"),
        (lambda folder: folder / "text.gguf", "no GGUF file"),
        (lambda folder: folder / "config.json", "no GGUF file; name the model's folder"),
    ],
)
def test_a_name_that_is_no_such_file_is_told_apart(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    for name in ("text.gguf", "config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelNotFoundError, match=says):
        find_model(str(make(tmp_path)), EngineConfig())


def test_load_format_says_what_is_expected(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    for load_format in ("auto", "gguf", "dummy"):
        check_format(path, EngineConfig(load_format=load_format))
    with pytest.raises(InvalidOptionError, match='use "auto" or "gguf"'):
        check_format(path, EngineConfig(load_format="safetensors"))
    with pytest.raises(InvalidOptionError, match="name the GGUF file itself"):
        check_format(tmp_path, EngineConfig(load_format="gguf"))


def test_dummy_weights_need_the_header_only(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    with LLM(str(path), load_format="dummy", device="cpu", kv_cache_memory_bytes=MIB, use_tqdm=False) as llm:
        assert llm.generate("ab", use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.parametrize("model_impl", ["generic", "compatible"])
def test_transformers_is_not_asked_to_run_a_gguf_file(tmp_path: Path, model_impl: ModelImpl) -> None:
    with pytest.raises(UnsupportedModelError, match="is a GGUF file, which only Fovea's own modules run"):
        load_family(model(tmp_path / "model.gguf"), model_impl)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"fovea-vlm\[gguf\]"):
        check_format(path, EngineConfig())


def test_a_server_finds_out_before_it_starts(tmp_path: Path) -> None:
    check_model(ServerConfig(model=str(model(tmp_path / "model.gguf"))))
    bare = model(tmp_path / "bare.gguf", {"tokenizer.chat_template": None})
    with pytest.raises(ModelError, match="without a chat template"):
        check_model(ServerConfig(model=str(bare)))
    with pytest.raises(InvalidOptionError, match="is a GGUF file"):
        check_model(ServerConfig(model=str(bare), load_format="safetensors"))

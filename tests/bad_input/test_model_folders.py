"""Model folders that are incomplete, broken or of another kind: refused with the name of what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fovea.core.config import EngineConfig
from fovea.core.errors import (
    CapacityError,
    FoveaError,
    InvalidOptionError,
    ModelError,
    ModelNotFoundError,
    UnknownOptionError,
    UnsupportedModelError,
    WeightsError,
)
from fovea.engine.build import build_engine, plan_engine
from fovea.families.registry import FAMILIES, load_family
from fovea.llm import LLM
from tests.bad_input.harness import FOREIGN
from tests.oracle.checkpoints import CASES, TEXT_FAMILIES
from tests.parity.support import EVERY_FAMILY as VARIANTS
from tests.parity.support import MIB, Checkpoints, answer, ask, check_idle, load, question, tokens

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SECOND_LAYER = "language_model.model.layers.1.self_attn.q_proj.weight"


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change a JSON file of the folder in place."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return apply


def setting(name: str, *path: str, to: object) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return edit(name, change)


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: folder.joinpath(name).unlink()


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        change(loaded)
        save_file(loaded, folder / WEIGHTS)

    return apply


def cut_short(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def index(content: object) -> Callable[[Path], None]:
    return write(INDEX, json.dumps(content))


def replaced(name: str, **changes: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(loaded: dict[str, torch.Tensor]) -> None:
        tensor = loaded[name]
        if "shape" in changes:
            tensor = torch.zeros(changes["shape"], dtype=tensor.dtype)
        loaded[name] = tensor.to(changes.get("dtype", tensor.dtype)).contiguous()

    return change


CONFIG, PREPROCESSOR, GENERATION = "config.json", "preprocessor_config.json", "generation_config.json"


def edit_both(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        edit(CONFIG, change)(folder)
        edit(PREPROCESSOR, change)(folder)

    return apply


BROKEN: dict[str, tuple[Callable[[Path], None], type[FoveaError], tuple[str, ...]]] = {
    "no config": (remove(CONFIG), ModelError, ("config.json",)),
    "an empty config": (write(CONFIG, ""), ModelError, ("config.json", "JSON")),
    "a config that is a list": (write(CONFIG, "[]"), ModelError, ("config.json", "JSON object")),
    "a config in another encoding": (
        write(CONFIG, b"\xff\xfe{}"),
        ModelError,
        ("config.json",),
    ),
    "a config nested without end": (write(CONFIG, "[" * 100_000), ModelError, ("config.json",)),
    "another architecture": (
        setting(CONFIG, "architectures", to=["LlavaForCausalLM"]),
        UnsupportedModelError,
        ("LlavaForCausalLM; supported: ", "LlavaForConditionalGeneration", "Phi3VForCausalLM"),
    ),
    "a mistyped architecture": (
        setting(CONFIG, "architectures", to=["Qwen2VLForConditionalGenerations"]),
        UnsupportedModelError,
        ("Did you mean 'Qwen2VLForConditionalGeneration'?",),
    ),
    "no architecture": (
        edit(CONFIG, lambda content: content.pop("architectures")),
        UnsupportedModelError,
        ("no architecture", "supported: "),
    ),
    "an architecture that is a number": (setting(CONFIG, "architectures", to=5), ModelError, ("architectures",)),
    "a list of numbers for it": (setting(CONFIG, "architectures", to=[[5]]), ModelError, ("architectures",)),
    "a text for a number": (
        setting(CONFIG, "text_config", "hidden_size", to="64"),
        ModelError,
        ("text_config", "'hidden_size'", "'64'", "int"),
    ),
    "a section that is a list": (setting(CONFIG, "text_config", to=[]), ModelError, ("'text_config'", "dict")),
    "another decoder": (
        setting(CONFIG, "text_config", "model_type", to="gpt2"),
        UnsupportedModelError,
        ("'model_type'", "'gpt2'", "'llama', 'mistral', "),
    ),
    "a decoder with biases in its MLP": (
        setting(CONFIG, "text_config", "mlp_bias", to=True),
        UnsupportedModelError,
        ("mlp_bias",),
    ),
    "a projector without biases": (
        setting(CONFIG, "multimodal_projector_bias", to=False),
        UnsupportedModelError,
        ("multimodal_projector_bias",),
    ),
    "a layer that is not there": (
        setting(CONFIG, "vision_feature_layer", to=[-2, 5]),
        ModelError,
        ("vision_feature_layer", "-5 to 4"),
    ),
    "another tower": (
        setting(CONFIG, "vision_config", "model_type", to="dinov2"),
        UnsupportedModelError,
        ("'siglip_vision_model'", "'clip_vision_model'"),
    ),
    "another activation": (
        setting(CONFIG, "projector_hidden_act", to="relu"),
        UnsupportedModelError,
        ("'projector_hidden_act'", "'relu'", "'gelu'"),
    ),
    "another rope": (
        setting(CONFIG, "text_config", "rope_scaling", to={"type": "yarn", "factor": 2.0}),
        UnsupportedModelError,
        ("'yarn'",),
    ),
    "another feature strategy": (
        setting(CONFIG, "vision_feature_select_strategy", to="full"),
        UnsupportedModelError,
        ("'full'", "'default'"),
    ),
    "a crop of another size": (
        setting(PREPROCESSOR, "crop_size", to={"height": 57, "width": 57}),
        UnsupportedModelError,
        ("crop_size", "57", "56"),
    ),
    "two mean colours": (setting(PREPROCESSOR, "image_mean", to=[0.5, 0.5]), ModelError, ("image_mean", "three")),
    "a broken preprocessor file": (write(PREPROCESSOR, "{"), ModelError, (PREPROCESSOR,)),
    "no weights": (remove(WEIGHTS), WeightsError, (WEIGHTS, "dummy")),
    "an absent shard": (
        index({"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00002.safetensors"}}),
        WeightsError,
        ("model-00002-of-00002.safetensors",),
    ),
    "a shard outside the folder": (index({"weight_map": {"a": "../x.safetensors"}}), WeightsError, ("outside",)),
    "an index without names": (index({"weight_map": 5}), WeightsError, (INDEX,)),
    "an index of numbers": (index({"weight_map": {"a": 5}}), WeightsError, (INDEX,)),
    "weights cut short": (cut_short, WeightsError, (WEIGHTS, "cut short")),
    "no safetensors at all": (write(WEIGHTS, "junk"), WeightsError, (WEIGHTS,)),
    "a missing tensor": (
        tensors(lambda loaded: loaded.pop(SECOND_LAYER)),
        WeightsError,
        ("lacks 1 of ", SECOND_LAYER),
    ),
    "an extra tensor": (
        tensors(lambda loaded: loaded.update(stranger=torch.zeros(1))),
        WeightsError,
        ("'stranger'", "does not know"),
    ),
    "a tensor of another shape": (
        tensors(replaced(SECOND_LAYER, shape=(64, 63))),
        WeightsError,
        (SECOND_LAYER, "[64, 63]", "[64, 64]"),
    ),
    "a tensor of the same size in another shape": (
        tensors(replaced(SECOND_LAYER, shape=(32, 128))),
        WeightsError,
        (SECOND_LAYER, "[32, 128]", "[64, 64]"),
    ),
    "a quantised tensor": (
        tensors(replaced(SECOND_LAYER, dtype=torch.int8)),
        WeightsError,
        (SECOND_LAYER, "int8", "quantised"),
    ),
    "no tokenizer": (remove("tokenizer.json"), ModelError, ("tokenizer",)),
    "a broken tokenizer": (write("tokenizer.json", "{}"), ModelError, ("tokenizer.json",)),
    "a template with an error": (write("chat_template.jinja", "{% if %}"), ModelError, ("template",)),
}


NEXT_BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "fields that differ": (setting(PREPROCESSOR, "image_grid_pinpoints", to=[[56, 56]]), ("differs", PREPROCESSOR)),
    "a field that is not made of tiles": (
        edit_both(lambda content: content.update(image_grid_pinpoints=[[56, 100]])),
        ("[56, 100]", "multiples of the tower's 56"),
    ),
    "a field of too many tiles": (
        edit_both(lambda content: content.update(image_grid_pinpoints=[[560, 560]])),
        ("[560, 560]", "at most 64 tiles"),
    ),
    "no newline": (setting(CONFIG, "use_image_newline_parameter", to=False), ("use_image_newline_parameter",)),
    "another filter": (setting(PREPROCESSOR, "resample", to=2), ("'resample' is 2",)),
    "no resizing": (setting(PREPROCESSOR, "do_resize", to=False), ("do_resize",)),
    "tiles of another size": (setting(PREPROCESSOR, "size", to={"shortest_edge": 28}), ("'size'", "28", "56")),
}


@pytest.mark.parametrize("name", NEXT_BROKEN)
def test_what_tiles_cannot_be_is_refused(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(checkpoints.folder("llava_next"), tmp_path / "model"))
    spoil, says = NEXT_BROKEN[name]
    spoil(folder)
    with pytest.raises(UnsupportedModelError) as caught:
        load_family(folder, "fused")
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A LLaVA of one's own to break."""
    return Path(shutil.copytree(checkpoints.folder("llava"), tmp_path / "model"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_the_name_of_what_is_wrong(folder: Path, name: str) -> None:
    spoil, kind, says = BROKEN[name]
    spoil(folder)
    with pytest.raises(FoveaError) as caught:
        load(folder, model_impl="fused")
    text = str(caught.value)
    assert isinstance(caught.value, kind), repr(caught.value)
    assert all(part in text for part in says), text
    assert not FOREIGN.search(text), text


QWEN_BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "another activation of the tower": (
        setting(CONFIG, "vision_config", "hidden_act", to="gelu"),
        ("'gelu'", "'silu'"),
    ),
    "a tower for another decoder": (
        setting(CONFIG, "vision_config", "out_hidden_size", to=48),
        ("'out_hidden_size'", "48", "64"),
    ),
    "a window smaller than a merged patch": (
        setting(CONFIG, "vision_config", "window_size", to=27),
        ("'window_size'", "27"),
    ),
    "half a layer": (
        setting(CONFIG, "vision_config", "fullatt_block_indexes", to=[0.5]),
        ("'fullatt_block_indexes'", "0.5"),
    ),
    "sliding windows in the decoder": (setting(CONFIG, "use_sliding_window", to=True), ("'use_sliding_window'",)),
    "sliding windows by layer": (
        setting(CONFIG, "layer_types", to=["full_attention", "sliding_attention"]),
        ("'layer_types'", "'sliding_attention'"),
    ),
    "another resize": (setting(PREPROCESSOR, "resample", to=2), ("'resample'", "2", "3")),
    "no resize": (setting(PREPROCESSOR, "do_resize", to=False), ("'do_resize'", "False")),
    "patches of another size": (setting(PREPROCESSOR, "patch_size", to=16), ("'patch_size'", "16", "14")),
}


@pytest.mark.parametrize("name", QWEN_BROKEN)
def test_what_a_qwen_cannot_do_is_refused_by_its_name(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(checkpoints.folder("qwen2_5_vl"), tmp_path / "model"))
    spoil, says = QWEN_BROKEN[name]
    spoil(folder)
    with pytest.raises(UnsupportedModelError) as caught:
        load_family(folder, "fused")
    assert all(part in str(caught.value) for part in says), caught.value


@pytest.mark.parametrize("name", ["no config", "another architecture", "no tokenizer", "a template with an error"])
def test_what_small_files_tell_is_told_before_weights_are_read(folder: Path, name: str) -> None:
    remove(WEIGHTS)(folder)
    spoil, _, says = BROKEN[name]
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        load(folder, model_impl="fused")
    assert not isinstance(caught.value, WeightsError)


@pytest.mark.parametrize(
    ("variant", "file"),
    [
        *((variant, file) for variant in VARIANTS for file in (CONFIG, PREPROCESSOR, GENERATION)),
        *((family, file) for family in TEXT_FAMILIES for file in (CONFIG, GENERATION)),
    ],
)
def test_no_value_of_another_kind_gets_through_as_anything_but_our_error(
    checkpoints: Checkpoints, tmp_path: Path, variant: str, file: str
) -> None:
    """Every key of the file in turn holds every kind of wrong value: the model loads, or is refused by us."""
    folder = Path(shutil.copytree(checkpoints.folder(variant), tmp_path / "model"))
    original = json.loads((folder / file).read_text(encoding="utf-8"))
    options = EngineConfig(device="cpu", dtype="float32", kv_cache_memory_bytes=16 * MIB, load_format="dummy")
    crashes = []
    for path in _paths(original):
        for value in ("x", -1, 0, 1.5, True, None, [], ["x"], [[1]], {}, {"x": 1}):
            setting(file, *path, to=value)(folder)
            try:
                family = load_family(folder, "fused")
                plan_engine(options, family)
                family.stop_tokens()
            except Exception as error:
                if not isinstance(error, FoveaError) or FOREIGN.search(str(error)):
                    crashes.append(f"{'.'.join(path)} = {value!r}: {type(error).__name__}: {error}"[:160])
            (folder / file).write_text(json.dumps(original), encoding="utf-8")
    assert not crashes, "\n" + "\n".join(crashes)


def _paths(content: dict[str, Any]) -> list[tuple[str, ...]]:
    nested = [(key, *rest) for key, value in content.items() if isinstance(value, dict) for rest in _paths(value)]
    return [(key,) for key in content] + nested


OPTIONS: list[tuple[dict[str, Any], type[FoveaError], tuple[str, ...]]] = [
    ({"max_model_length": 5}, UnknownOptionError, ("'max_model_length'", "Did you mean 'max_model_len'?")),
    ({"dtype": "int8"}, InvalidOptionError, ("dtype", "'int8'", "bfloat16")),
    ({"device": "tpu"}, InvalidOptionError, ("device", "'tpu'", "cpu")),
    ({"max_model_len": 4097}, InvalidOptionError, ("4,097", "4,096")),
    ({"kv_cache_memory_bytes": 1000}, CapacityError, ("0 tokens", "kv_cache_memory_bytes")),
    ({"kv_cache_memory_bytes": MIB, "max_model_len": 4096}, CapacityError, ("tokens", "4,096")),
    ({"mm_processor_kwargs": {"num_crops": 1}}, InvalidOptionError, ("'num_crops'", "none")),
    ({"chat_template": "{% if %}"}, InvalidOptionError, ("chat_template", "line 1")),
    ({"tokenizer": "/nowhere"}, ModelNotFoundError, ("/nowhere",)),
]


@pytest.mark.parametrize(("options", "kind", "says"), OPTIONS, ids=lambda value: str(value)[:50])
def test_options_that_do_not_fit_the_model_are_refused(
    checkpoints: Checkpoints, options: dict[str, Any], kind: type[FoveaError], says: tuple[str, ...]
) -> None:
    settings = {"device": "cpu", "use_tqdm": False, "kv_cache_memory_bytes": 16 * MIB, **options}
    with pytest.raises(FoveaError) as caught:
        LLM(str(checkpoints.folder("llava")), **settings)
    assert isinstance(caught.value, kind), repr(caught.value)
    assert all(part in str(caught.value) for part in says), caught.value


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(InvalidOptionError, match=r'device is "cuda" but torch sees no CUDA device; use "cpu"'):
        LLM(str(checkpoints.folder("llava")), device="cuda", use_tqdm=False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/nowhere/model", "neither a folder, a GGUF file nor a hub id"),
        ("nowhere", "neither a folder, a GGUF file nor a hub id"),
        ("fovea-tin", "Did you mean 'fovea-tiny'?"),
        ("nobody/no-such-model", "hub could not be reached or has no such model"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, says: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        LLM(name, device="cpu", use_tqdm=False)
    assert says in str(caught.value)
    assert repr(name) in str(caught.value)


def test_weights_in_shards_are_the_same_model(checkpoints: Checkpoints, folder: Path) -> None:
    """Cut over three files with an index, as large models are published."""
    loaded = load_file(folder / WEIGHTS)
    names = sorted(loaded)
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for shard, members in shards.items():
        save_file({name: loaded[name] for name in members}, folder / shard)
    remove(WEIGHTS)(folder)
    index({"weight_map": {name: shard for shard, members in shards.items() for name in members}})(folder)
    with load(folder) as llm:
        case = CASES["llava"][0]
        assert tokens(ask(llm, question(case))) == answer(checkpoints.folder("llava"), case).greedy
        check_idle(llm)


def test_a_tensor_that_two_shards_hold_is_refused(folder: Path) -> None:
    loaded = load_file(folder / WEIGHTS)
    save_file({SECOND_LAYER: loaded[SECOND_LAYER]}, folder / "extra.safetensors")
    index({"weight_map": {"a": WEIGHTS, "b": "extra.safetensors"}})(folder)
    with pytest.raises(WeightsError, match="twice"):
        load(folder, model_impl="fused")


@pytest.mark.parametrize("family", ["llava", "llava_next", "vipllava"])
def test_names_as_transformers_5_saves_them_are_taken(checkpoints: Checkpoints, tmp_path: Path, family: str) -> None:
    """Modules were renamed there; a folder written under those names is the same model."""
    folder = Path(shutil.copytree(checkpoints.folder(family), tmp_path / "model"))
    renames = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "vision_tower.": "model.vision_tower.",
        "image_newline": "model.image_newline",
    }
    loaded = load_file(folder / WEIGHTS)
    for name in list(loaded):
        old = next(prefix for prefix in renames if name.startswith(prefix))
        loaded[renames[old] + name[len(old) :]] = loaded.pop(name)
    save_file(loaded, folder / WEIGHTS)
    with load(folder) as llm:
        case = CASES[family][0]
        assert tokens(ask(llm, question(case))) == answer(checkpoints.folder(family), case).greedy


def test_dummy_weights_need_no_weight_files(folder: Path) -> None:
    remove(WEIGHTS)(folder)
    params = question(CASES["llava"][0])
    drawn = []
    for seed in (0, 0, 1):
        with load(folder, load_format="dummy", seed=seed) as llm:
            drawn.append(tokens(ask(llm, params)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_family_is_listed_to_whoever_brings_another(folder: Path) -> None:
    setting(CONFIG, "architectures", to=["BertModel"])(folder)
    with pytest.raises(UnsupportedModelError) as caught:
        load_family(folder, "fused")
    for family in FAMILIES:
        assert all(name in str(caught.value) for name in family.architectures)


def test_nothing_of_a_model_is_executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pickle is opened, whatever lies in the folder, and remote code is not looked for."""
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    (folder / "modeling_llava.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    edit(CONFIG, lambda content: content.update(auto_map={"AutoModel": "modeling_llava.Llava"}))(folder)
    options = EngineConfig(device="cpu", kv_cache_memory_bytes=16 * MIB, trust_remote_code=True)
    family = load_family(folder, "fused")
    build_engine(plan_engine(options, family), options, family, folder, use_tqdm=False)

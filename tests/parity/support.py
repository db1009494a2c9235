"""What the tests of the whole engine have in common: checkpoints, engines, questions, answers of the oracle."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fovea.core.params import SamplingParams
from fovea.core.types import CompletionOutput, RequestOutput
from fovea.llm import LLM
from fovea.pipeline.collector import Collector
from fovea.prompt.forms import parse_prompt
from tests.oracle.checkpoints import BUILDERS, CASES, Case
from tests.oracle.reference import Reference, reference
from tests.oracle.videos import INTERN_CASES, LLAVA_CASES, VIDEO_CASES, clip

SHARED = Path(os.environ.get("FOVEA_SHARED", Path(__file__).parents[2].parent / "shared"))
DEVICE = os.environ.get("FOVEA_TEST_DEVICE", "cpu")  # the same tests run on a card: make gpu-test
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
MIB = 1024**2

# Largest difference of logits. Against float64 the engine is off by 1e-4 with the tiny Phi and the oracle by 6e-5; with
# the one that switches at 32 tokens, whose rotary scale makes attention very sharp, by 8e-4 and 1.6e-3. A smaller
# limit would measure rounding there. The smallest real mistake (one wrong picture token of 757) changes 0.04.
ATOL: Mapping[str, float] = {
    "llava": 1e-4,
    "llava-grouped": 1e-4,
    "llava_next": 1e-4,
    "llava_next-mistral": 1e-4,
    "llava_next-qwen2": 1e-4,
    "vipllava": 1e-4,
    "qwen2_vl": 1e-4,
    "qwen2_5_vl": 1e-4,
    "qwen2_5_vl-nested": 1e-4,
    "mistral3": 1e-4,
    "pixtral": 1e-4,
    "internvl": 1e-4,
    "internvl-large": 1e-4,
    "ovis2": 1e-4,
    "phi3_v": 3e-4,
    "phi3_v-switch-32": 4e-3,
    "phi3": 3e-4,
    "phi3-switch-32": 4e-3,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SMOL = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 96, "rope_theta": 100000}

# Each checkpoint of the tests: the family and what its builder is told.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llava": ("llava", {}),
    "llava-grouped": ("llava", {"kv_heads": 2}),
    "llava_next": ("llava_next", {}),
    "llava_next-mistral": ("llava_next", {"text": "mistral"}),
    "llava_next-qwen2": ("llava_next", {"text": "qwen2"}),
    "llava_next_video": ("llava_next_video", {}),
    "llava_onevision": ("llava_onevision", {}),
    "llava_onevision-tied": ("llava_onevision", {"tied": True}),
    "llava_siglip": ("llava_siglip", {}),
    "llava_siglip-phi3": ("llava_siglip", {"text": "phi3"}),
    "llava_siglip-qwen3": ("llava_siglip", {"text": "qwen3"}),
    "idefics3": ("idefics3", {}),
    "smolvlm": ("smolvlm", {}),
    "vipllava": ("vipllava", {}),
    "qwen2_vl": ("qwen2_vl", {}),
    "qwen2_5_vl": ("qwen2_5_vl", {}),
    "qwen2_5_vl-nested": ("qwen2_5_vl", {"nested": 1}),
    "mistral3": ("mistral3", {}),
    "pixtral": ("pixtral", {}),
    "internvl": ("internvl", {}),
    "internvl-large": ("internvl", {"kind": "internvl-large"}),
    "ovis2": ("ovis2", {}),
    "qwen3_vl": ("qwen3_vl", {}),
    "qwen3_vl-untied": ("qwen3_vl", {"tied": False, "deepstack": (1,)}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {}),
    "glm4v": ("glm4v", {}),
    "glm4v_moe": ("glm4v_moe", {}),
    "glm46v": ("glm46v", {}),
    "glm_ocr": ("glm_ocr", {}),
    "phi3_v": ("phi3_v", {}),
    "phi3_v-switch-32": ("phi3_v", {"original_max_position": 32}),
    "llama": ("llama", {}),
    "llama-llama3": ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}),
    "llama-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 10000.0}),
    "llama-biased": ("llama", {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 8}),
    "llama-smollm2": ("llama", {**SMOL, "tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 12}),
    "phi3": ("phi3", {}),
    "phi3-switch-32": ("phi3", {"original_max_position_embeddings": 32}),
    "phi3-plain": ("phi3", {"rope_scaling": None, "max_position_embeddings": 4096, "num_key_value_heads": 1}),
    "phi3-partial": ("phi3", {"rope_scaling": None, "partial_rotary_factor": 0.75, "num_attention_heads": 4}),
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4, "num_hidden_layers": 2}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-mixed": ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2, "tie_word_embeddings": False}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "qwen3-biased": ("qwen3", {"attention_bias": True, "head_dim": 16, "tie_word_embeddings": False}),
    "gemma3": ("gemma3", {}),
    "gemma3-scaled": ("gemma3", {"query_pre_attn_scalar": 40, "sliding_window": 3}),
    "paligemma": ("paligemma", {}),
    "paligemma-2": ("paligemma", {"text": "gemma2"}),
    "aya_vision": ("aya_vision", {}),
    "cohere2": ("cohere2", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma2-wide": ("gemma2", {"sliding_window": 4096, "attn_logit_softcapping": None}),
    "gemma3_text": ("gemma3_text", {}),
    "gemma3_text-scaled": ("gemma3_text", {"query_pre_attn_scalar": 40, "sliding_window_pattern": 3}),
}
# The first of each shape runs in every test of the engine, all of them where families differ.
FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "phi3_v")
# Text stands around a picture's rows, between them, or rows have tokens of their own.
SPANS = ("mistral3", "internvl", "ovis2", "idefics3", "smolvlm")
LLAVAS = ("llava_next", "llava_next_video", "llava_onevision", "llava_siglip", "vipllava")
EVERY_FAMILY = (*FAMILIES, *LLAVAS, *SPANS, "glm4v", "glm_ocr", "gemma3", "paligemma", "aya_vision")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GRIDDED = (*QWEN, "glm4v", "glm_ocr")  # whose embeddings come with a grid and whose positions have three rows
EVERY_CASE = [(variant, case) for variant, (family, _) in VARIANTS.items() for case in CASES[family]]
EVERY_CASE += [(variant, case) for variant in (*QWEN, "qwen2_5_vl-nested") for case in VIDEO_CASES]
EVERY_CASE += [(variant, case) for variant in ("llava_next_video", "llava_onevision") for case in LLAVA_CASES]
EVERY_CASE += [(variant, case) for variant in ("internvl", "internvl-large") for case in INTERN_CASES]
_KV_BYTES = {"phi3_v": 48 * MIB, "phi3": 48 * MIB}


def case_name(value: object) -> str | None:
    return value.name if isinstance(value, Case) else None


class Checkpoints:
    """Tiny model folders by variant and seed, built when first wanted."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, variant: str, seed: int = 0) -> Path:
        family, options = VARIANTS[variant]
        folder = self._root / f"{variant}-{seed}"
        return folder if folder.is_dir() else BUILDERS[family](folder, seed=seed, **options)


class Engines:
    """LLMs by variant and options, shared by all tests; `check_and_rest` is called after each test."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._llms: dict[str, LLM] = {}
        self._used: set[str] = set()

    def get(self, variant: str, *, seed: int = 0, **options: Any) -> LLM:
        name = json.dumps([variant, seed, options], sort_keys=True, default=str)
        if name not in self._llms:
            options.setdefault("kv_cache_memory_bytes", _KV_BYTES.get(VARIANTS[variant][0], 16 * MIB))
            self._llms[name] = load(self._checkpoints.folder(variant, seed), **options)
        self._used.add(name)
        return self._llms[name]

    def check_and_rest(self) -> None:
        """Every engine that a test used owns nothing any more; caches are cold for the next test."""
        used, self._used = self._used, set()
        for name in used:
            check_idle(self._llms[name])
            self._llms[name].reset_prefix_cache()

    def close(self) -> None:
        for llm in self._llms.values():
            llm.close()


def load(folder: Path, **options: Any) -> LLM:
    torch.set_num_threads(1)
    usual = {"device": DEVICE, "dtype": "float32", "media_threads": 2, "kv_cache_memory_bytes": 16 * MIB}
    if DEVICE == "cuda":
        usual["max_num_seqs"] = 16  # a handful of graphs for each of many engines
    return LLM(str(folder), use_tqdm=False, **(usual | options))


def check_idle(llm: LLM) -> None:
    llm.engine.scheduler.check_idle()
    assert not llm.engine.stats.num_idle_repairs
    assert not llm.engine._requests, "an idle engine remembers requests"


def question(case: Case, **more: object) -> dict[str, object]:
    """The case as a prompt for generate."""
    prompt: dict[str, object] = {"prompt": case.prompt, **more}
    data: dict[str, object] = {"image": case.images()} if case.sizes else {}
    if case.clips:
        data["video"] = [(frames, {} if fps is None else {"fps": fps}) for frames, fps in clips(case)]
    return {**prompt, "multi_modal_data": data} if data else prompt


def clips(case: Case) -> list[tuple[list[Image.Image], float | None]]:
    """Frames and frames a second of each video."""
    return [(clip(frames, width, height, seed), fps) for frames, width, height, seed, fps in case.clips]


def ask(llm: LLM, prompt: object, params: SamplingParams = GREEDY) -> RequestOutput:
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    return output


def ask_all(
    llm: LLM, prompts: Sequence[object], params: SamplingParams | Sequence[SamplingParams] = GREEDY
) -> list[RequestOutput]:
    return llm.generate(list(prompts), params, use_tqdm=False)


def run_together(llm: LLM, prompts: Sequence[object], params: Sequence[SamplingParams]) -> list[RequestOutput]:
    """All prompts are in the engine before its first step, whatever the media threads take for them."""
    prepared = [
        llm._preparer.prepare(parse_prompt(prompt), param, f"together {i}", time.perf_counter())
        for i, (prompt, param) in enumerate(zip(prompts, params, strict=True))
    ]
    collectors = {
        p.request.request_id: Collector(p, llm.get_tokenizer(), llm.engine.stop, live=False) for p in prepared
    }
    for p in prepared:
        llm.engine.add(p.request)
    while llm.engine.has_work():
        for token in llm.engine.step():
            collectors[token.request_id].add(token)
    return [collector.output() for collector in collectors.values()]


def tokens(output: RequestOutput) -> list[int]:
    """The tokens of the only completion."""
    (completion,) = output.outputs
    return list(completion.token_ids)


def all_tokens(outputs: Iterable[RequestOutput]) -> list[list[list[int]]]:
    """The tokens of every completion of every request."""
    return [[list(completion.token_ids) for completion in output.outputs] for output in outputs]


@cache
def answer(folder: Path, case: Case) -> Reference:
    """What the oracle says, worked out once in a session."""
    return reference(folder, case.prompt, case.images(), clips=clips(case))


def words(llm: LLM) -> list[int]:
    """Tokens of plain words with a space before them: answers of these alone are sane text in every way of decoding."""
    space = "Ġ" if llm.family.name.startswith("Qwen") else "▁"
    found = [llm.get_tokenizer().token_id(f"{space}{word}") for word in ("river", "sea", "story", "day", "red", "blue")]
    return [token for token in found if token is not None]


def leads(completion: CompletionOutput) -> list[float]:
    """By how much each token leads the next likely one."""
    found = []
    for entry in completion.logprobs or ():
        first, second = sorted((value.logprob for value in entry.values()), reverse=True)[:2]
        found.append(first - second)
    return found


def num_decided(margins: Sequence[float], least: float = 1e-3) -> int:
    """How many greedy tokens two engines must agree on: up to the first whose lead is within rounding."""
    return next((i for i, margin in enumerate(margins) if margin < least), len(margins))


def assert_logits_agree(variant: str, got: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> None:
    np.testing.assert_allclose(got, want, atol=ATOL.get(variant, 1e-4), rtol=0)


def prompt_logits(llm: LLM, prompt: object) -> npt.NDArray[np.float32]:
    """The logits at every position of the prompt, whatever chunks it runs in. Caches must be cold."""
    hidden: list[torch.Tensor] = []
    decoder = llm.engine.model.decoder
    hook = decoder.register_forward_hook(lambda module, args, output: hidden.append(output.clone()))
    try:  # whose log-probabilities are asked for, so that all positions are computed to the end
        output = ask(llm, prompt, dataclasses.replace(GREEDY, max_tokens=1, prompt_logprobs=0))
    finally:
        hook.remove()
    with torch.inference_mode():
        logits = decoder.logits(torch.cat(hidden)).cpu().numpy()
    assert len(logits) == len(output.prompt_token_ids), "the prompt ran once, in full"
    return np.asarray(logits, np.float32)


def frames(count: int, width: int, height: int) -> list[Image.Image]:
    """A picture that changes a little from one to the next, as a video's frames do."""
    rng = np.random.Generator(np.random.PCG64(7))
    still = rng.integers(0, 256, (height, width, 3), np.uint8)
    return [Image.fromarray(np.roll(still, 5 * number, axis=1)) for number in range(count)]

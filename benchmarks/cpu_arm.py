"""One engine in a process of its own, asked over a pipe: a line of JSON in, a line of JSON out.

    python -m benchmarks.cpu_arm {fovea,transformers,vllm,llama,tools}

"load" first; then "tokens" (prompts of ids) and "picture" (a JPEG in base64), which answer with the seconds they took.
Every engine decodes greedily and past the model's own end. Thread counts come from the environment.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from benchmarks.cpu_work import QUESTION, make_folder

MAX_MODEL_LEN = 2048
KV_BYTES = 512 * 1024**2
MOST_CONCURRENT = 8
PROBE_BYTES = 1024**3


class Engine(Protocol):
    """`tokens` answers all prompts with `out` tokens each, `picture` one question about a picture."""

    def tokens(self, prompts: list[list[int]], out: int) -> None: ...
    def picture(self, image: Image.Image, out: int) -> None: ...


class Fovea:
    def __init__(self, folder: str, **options: Any) -> None:
        from fovea import LLM

        usual = {"device": "cpu", "enable_prefix_caching": False, "max_model_len": MAX_MODEL_LEN}
        self.llm = LLM(folder, use_tqdm=False, kv_cache_memory_bytes=KV_BYTES, **usual, **options)

    def tokens(self, prompts: list[list[int]], out: int) -> None:
        self._run([{"prompt_token_ids": ids} for ids in prompts], out)

    def picture(self, image: Image.Image, out: int) -> None:
        self._run([{"prompt": QUESTION, "multi_modal_data": {"image": image}}], out)

    def _run(self, asked: list[Any], out: int) -> None:
        from fovea import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=out, ignore_eos=True)
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == out for output in outputs)


class Transformers:
    """One padded batch in a static shape, or one request after the other."""

    def __init__(self, folder: str, *, dtype: str = "bfloat16") -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

        self.torch, self.processor = torch, None
        sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
        made = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self.model = made.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        if sees:
            self.processor = AutoProcessor.from_pretrained(folder)

    def tokens(self, prompts: list[list[int]], out: int, *, one_by_one: bool = False) -> None:
        if one_by_one:
            for ids in prompts:
                self._generate(out, **self._padded([ids]))
        else:
            self._generate(out, **self._padded(prompts))

    def picture(self, image: Image.Image, out: int) -> None:
        assert self.processor is not None, "asked of models that see"
        self._generate(out, **self.processor(text=[QUESTION], images=[image], return_tensors="pt"))

    def _padded(self, prompts: list[list[int]]) -> dict[str, Any]:
        """On the left."""
        longest = max(map(len, prompts))
        rows = [[0] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        return {"input_ids": self.torch.tensor(rows), "attention_mask": self.torch.tensor(mask)}

    def _generate(self, out: int, **inputs: Any) -> None:
        with self.torch.inference_mode():
            made = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=out, min_new_tokens=out, pad_token_id=0
            )
        assert made.shape[1] == inputs["input_ids"].shape[1] + out


class Vllm:
    """Its CPU build."""

    def __init__(self, folder: str, *, dtype: str = "bfloat16") -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, which is stopped while idle
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        self.vllm = import_module("vllm")
        self.llm = self.vllm.LLM(
            folder,
            dtype=dtype,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=MOST_CONCURRENT,
            enable_prefix_caching=False,
            limit_mm_per_prompt={"image": 1, "video": 0},
            skip_mm_profiling=True,  # it would encode the largest picture there is, which takes a CPU minutes
        )

    def tokens(self, prompts: list[list[int]], out: int) -> None:
        self._run([{"prompt_token_ids": ids} for ids in prompts], out)

    def picture(self, image: Image.Image, out: int) -> None:
        self._run([{"prompt": QUESTION, "multi_modal_data": {"image": image}}], out)

    def _run(self, asked: list[Any], out: int) -> None:
        params = self.vllm.SamplingParams(temperature=0.0, max_tokens=out, ignore_eos=True)
        self.llm.generate(asked, params, use_tqdm=False)


class Llama:
    """llama.cpp by its Python binding, which has no batches of its own: requests go one after the other."""

    def __init__(self, folder: str, *, threads: int = 0) -> None:
        made = import_module("llama_cpp").Llama
        self.model = made(folder, n_ctx=MAX_MODEL_LEN, n_threads=threads, n_threads_batch=threads, verbose=False)

    def tokens(self, prompts: list[list[int]], out: int) -> None:
        for ids in prompts:
            self.model.reset()
            made = self.model.generate(ids, top_k=1, temp=0.0)
            for _ in range(out):
                next(made)
            made.close()

    def picture(self, image: Image.Image, out: int) -> None:
        raise NotImplementedError("text only here")


class Tools:
    """What belongs to no engine: the folder of weights, the bandwidth of memory, preprocessing."""

    def make(self, target: str, published: str, scale: float, seed: int) -> None:
        make_folder(Path(target), Path(published), scale, seed)

    def bandwidth(self) -> float:
        """Bytes a second of reading more than any cache holds: the best of several passes."""
        import torch

        buffer = torch.ones(PROBE_BYTES // 8, dtype=torch.int64)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            buffer.sum()
            times.append(time.perf_counter() - started)
        return PROBE_BYTES / min(times)

    def pictures(self, count: int, seed: int) -> dict[str, list[float]]:
        from benchmarks.cpu_pictures import preprocessing

        return preprocessing(count, seed)


ENGINES: dict[str, Any] = {"fovea": Fovea, "transformers": Transformers, "vllm": Vllm, "llama": Llama}


class Process:
    def __init__(self, name: str) -> None:
        self.name = name
        self.engine: Any = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        what = asked.pop("do")
        if self.name == "tools":
            return {"value": getattr(Tools(), what)(**asked)}
        if what == "load":
            self.engine = ENGINES[self.name](asked.pop("folder"), **asked)
            return {}
        if what == "picture":
            asked["image"] = Image.open(io.BytesIO(base64.b64decode(asked["image"])))
        started = time.perf_counter()
        getattr(self.engine, what)(**asked)
        return {"seconds": time.perf_counter() - started}


def main() -> None:
    process, out = Process(sys.argv[1]), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with contextlib.redirect_stdout(sys.stderr):  # whatever engines print is no answer
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                answer = process.answer(json.loads(line))
            except Exception as error:  # the parent says so and goes on without this arm
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()

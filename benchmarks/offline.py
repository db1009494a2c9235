"""The offline benchmark: latency, prefill, throughput, two pictures, text, one picture asked often.

    python -m benchmarks.offline                                  the embedded model, sizes for a laptop
    python -m benchmarks.offline MODEL --dummy --n 256 --out 128  a folder without weights on a GPU

Greedy, end tokens ignored, all pictures different, so that every run does the same work. Prints a table with the share
of the physical limit (bytes over measured bandwidth, operations over measured matrix rate) and writes JSON.
`benchmarks.table` runs it for several models and judges the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.figure import Figure, number
from benchmarks.results_file import RESULTS, write_results

if TYPE_CHECKING:
    from benchmarks.limits import Limits

TEXT_ONLY = "Tell me a long story about a small engine that reads pictures. " * 30
QUESTION = "What is the content of this image?"
WORKLOADS = ("lat", "enc", "thr", "two", "txt", "rep")
TEXT_BATCHES, TEXT_TOKENS = (1, 64, 256), 256
REPEATS, REPEAT_TOKENS = 64, 32

Limit = Callable[["Limits"], float]


class Bench:
    """Nothing but the measured work touches the device before the last figure: limits are measured in `finish`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        self.figures: list[Figure] = []
        self._limits: list[tuple[Figure, Limit]] = []
        started = time.perf_counter()
        import fovea

        self.sampling = fovea.SamplingParams
        llm_class = fovea.LLM
        imported = time.perf_counter()
        options: dict[str, Any] = {"load_format": "dummy"} if args.dummy else {}
        options |= {"max_model_len": args.len, "limit_mm_per_prompt": {"image": 2}, "gpu_memory_utilization": args.mem}
        self.llm = llm_class(args.model, **(options | json.loads(args.options)))
        ready = time.perf_counter()
        self.add(Figure("import", imported - started, "s"))
        self.add(Figure("start", ready - imported, "s"))
        self.add(Figure("import + start", ready - started, "s"))

    def add(self, figure: Figure, limit: Limit | None = None) -> None:
        self.figures.append(figure)
        if limit is not None:
            self._limits.append((figure, limit))
        print(f"{figure.name:28}{number(figure.value):>10} {figure.unit}", flush=True)

    def picture(self) -> Image.Image:
        """A smooth colour field with one noisy corner: distinct for each call, realistic to resize."""
        small = Image.fromarray(self.rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((self.args.w, self.args.h), Image.Resampling.BICUBIC)).copy()
        pixels[:8, :8] = self.rng.integers(0, 255, (8, 8, 3))
        return Image.fromarray(pixels)

    def request(self, pictures: int = 1) -> dict[str, Any]:
        head, tail = _frame(self.llm.family.name)
        tags = "".join(self.llm.family.image_text(i + 1) for i in range(pictures))
        images = [self.picture() for _ in range(pictures)]
        prompt = head + tags + QUESTION + tail
        return {"prompt": prompt, "multi_modal_data": {"image": images if pictures > 1 else images[0]}}

    def run(self, requests: list[Any], tokens: int) -> tuple[float, list[Any]]:
        params = self.sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        started = time.perf_counter()
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        made = sum(len(output.outputs[0].token_ids) for output in outputs)
        if made != tokens * len(requests):
            raise SystemExit(f"{made} tokens came back, not {tokens * len(requests)}")
        return seconds, outputs

    def first(self) -> None:
        self.add(Figure("first request", self.run([self.request()], 1)[0], "s"))
        self.run([self.request() for _ in range(4)], 8)

    def lat(self) -> None:
        times, outputs = zip(*(self.run([self.request()], 1) for _ in range(11)), strict=True)
        ttft_s = statistics.median(times)
        prompt, patches = _shape(outputs[0][0], self.llm.family)
        spread = {"lo": round(1e3 * min(times), 2), "hi": round(1e3 * max(times), 2), "prompt_tokens": prompt}
        ttft = Figure("TTFT, one picture", 1e3 * ttft_s, "ms", more=spread)
        self.add(ttft, lambda limits: 1e3 * limits.prefill_s(prompt, patches, alone=True))
        full_s = statistics.median(self.run([self.request()], 129)[0] for _ in range(5))
        decode = Figure("decode alone", 128 / (full_s - ttft_s), "tok/s")
        self.add(decode, lambda limits: 1 / limits.decode_step_s(1, prompt + 64))

    def enc(self) -> None:
        requests = [self.request() for _ in range(self.args.n)]
        seconds, outputs = self.run(requests, 1)
        prompt, patches = _shape(outputs[0], self.llm.family)
        figure = Figure("pictures, one token out", self.args.n / seconds, "picture/s")
        self.add(figure, lambda limits: 1 / limits.prefill_s(prompt, patches))

    def thr(self) -> None:
        self._throughput("requests", self.args.n, 1)

    def two(self) -> None:
        self._throughput("two pictures", max(1, self.args.n // 2), 2)

    def _throughput(self, name: str, count: int, pictures: int) -> None:
        out = self.args.out
        seconds, outputs = self.run([self.request(pictures) for _ in range(count)], out)
        prompt, patches = _shape(outputs[0], self.llm.family)
        batch = self._batch(count, prompt + out)
        more = {"prompt_tokens": prompt, "tok_s": round(count * out / seconds, 1), "batch": batch}
        self.add(
            Figure(f"{name}, {out} out", count / seconds, "req/s", more=more),
            lambda limits: 1 / limits.request_s(limits.prefill_s(prompt, patches), prompt, out, batch),
        )

    def txt(self) -> None:
        for batch in (size for size in TEXT_BATCHES if size <= max(1, self.args.n)):
            seconds, outputs = self.run([f"{i} {TEXT_ONLY}" for i in range(batch)], TEXT_TOKENS)
            figure = Figure(f"text, batch {batch}", batch * TEXT_TOKENS / seconds, "tok/s")
            self.add(figure, self._text_limit(len(outputs[0].prompt_token_ids), batch))

    def _text_limit(self, prompt: int, count: int) -> Limit:
        batch = self._batch(count, prompt + TEXT_TOKENS)

        def limit(limits: Limits) -> float:
            prefill_s = limits.prefill_s(prompt, [], alone=count == 1)
            return TEXT_TOKENS / limits.request_s(prefill_s, prompt, TEXT_TOKENS, batch)

        return limit

    def _batch(self, count: int, tokens: int) -> int:
        """How many sequences of so many tokens can decode together: the KV cache may hold fewer than there are."""
        fit = int(self.llm.engine.plan.kv_tokens // tokens)
        return max(1, min(count, fit, self.llm.config.max_num_seqs))

    def rep(self) -> None:
        base, (_, tail) = self.request(), _frame(self.llm.family.name)
        end = QUESTION + tail
        requests = [{**base, "prompt": base["prompt"].replace(end, f"Question {i}. {end}")} for i in range(REPEATS)]
        seconds, outputs = self.run(requests, REPEAT_TOKENS)
        prompt, patches = _shape(outputs[0], self.llm.family)
        shared = _common(outputs[0].prompt_token_ids, outputs[1].prompt_token_ids)
        self.add(
            Figure(f"one picture, {REPEATS} questions", REPEATS / seconds, "req/s", more={"shared_tokens": shared}),
            lambda limits: REPEATS / limits.repeat_s(patches, prompt, shared, REPEAT_TOKENS, REPEATS),
        )

    def finish(self) -> Path:
        """Measure the device's ceilings, with the engine out of its memory, print shares, write the file."""
        import torch

        from benchmarks.limits import Limits, measure

        spec, model = self.llm.family.spec, self.llm.engine.model
        device, dtype, counters = model.device, model.dtype, self.llm.engine.counters()
        plan = self.llm.engine.plan
        self.llm.close()
        del self.llm, model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        limits = Limits(spec, measure(device, dtype), dtype.itemsize, plan.kv_bytes // plan.kv_tokens)
        for figure, limit in self._limits:
            figure.limit = limit(limits)
        self._print()
        content = {
            "dtype": str(dtype),
            "arguments": {k: v for k, v in vars(self.args).items() if k not in ("model", "commit", "results")},
            "bandwidth_gb_s": round(limits.ceilings.bytes_per_s / 1e9, 1),
            "matrix_tflop_s": round(limits.ceilings.flops_per_s / 1e12, 2),
            "counters": counters,
            "figures": [figure.content() for figure in self.figures],
        }
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        place = Path(self.args.results)
        return write_results("offline", self.args.model, card, content, commit=self.args.commit, folder=place)

    def _print(self) -> None:
        print(f"\n{'figure':28}{'value':>10} {'unit':10}{'limit':>10} {'share':>6}")
        for figure in self.figures:
            limit = f"{number(figure.limit):>10} {figure.share:6.0%}" if figure.limit and figure.share else ""
            print(f"{figure.name:28}{number(figure.value):>10} {figure.unit:10}{limit}".rstrip(), flush=True)


def _frame(family: str) -> tuple[str, str]:
    """What stands before the pictures and after the question, in each family's own prompt form."""
    if family.startswith("Llava"):
        return "USER: ", "\nASSISTANT:"
    if family.startswith("Phi3V"):
        return "<|user|>\n", "<|end|>\n<|assistant|>\n"
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )


def _shape(output: Any, family: Any) -> tuple[int, list[int]]:
    """Prompt tokens and tower segments (in patches) of an output."""
    segments: list[int] = []
    for media in output.media:
        plan = family.plan_image(media.original_width_px, media.original_height_px, {})
        tile = (family.spec.tile_px // family.spec.tower.patch_px) ** 2
        segments += [tile] * (plan.num_patches // tile) if tile else [plan.num_patches]
    return len(output.prompt_token_ids), segments


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts have in common from their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fovea-tiny")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--n", type=int, default=16, help="requests")
    parser.add_argument("--out", type=int, default=32, help="tokens out")
    parser.add_argument("--w", type=int, default=1024, help="picture width in pixels")
    parser.add_argument("--h", type=int, default=768, help="picture height in pixels")
    parser.add_argument("--len", type=int, default=4096, help="max_model_len")
    parser.add_argument("--mem", type=float, default=0.85, help="gpu_memory_utilization")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", default="{}", help="further LLM options as JSON")
    parser.add_argument("--results", default=str(RESULTS), help="folder for the results file")
    parser.add_argument("--commit", default="", help="commit to note, where git is not at hand")
    args = parser.parse_args(argv)
    unknown = set(args.workloads.split(",")) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workloads {sorted(unknown)}; known: {', '.join(WORKLOADS)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    bench = Bench(args)
    bench.first()
    for workload in args.workloads.split(","):
        getattr(bench, workload)()
    print(f"written to {bench.finish()}", file=sys.stderr)


if __name__ == "__main__":
    main()

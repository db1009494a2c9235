"""The offline benchmark: latency, prefill, throughput, two pictures, text, one picture asked often.

    python -m benchmarks.offline                                  the embedded model, sizes for a laptop
    python -m benchmarks.offline MODEL --dummy --n 256 --out 128  a folder without weights on a GPU

Greedy, end tokens ignored, all pictures different, so that every run does the same work. Prints a table with the share
of the physical limit (bytes over measured bandwidth, operations over measured matrix rate) and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results_file import write_results

TEXT_ONLY = "Tell me a long story about a small engine that reads pictures. " * 30
QUESTION = "What is the content of this image?"
WORKLOADS = ("lat", "enc", "thr", "two", "txt", "rep")
TEXT_TOKENS, REPEAT_TOKENS, REPEATS = 256, 32, 64


@dataclass
class Figure:
    name: str
    value: float
    unit: str
    limit: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Of the physical limit, 1.0 is the limit; for times the inverse."""
        if not self.limit:
            return None
        return self.limit / self.value if self.unit in ("ms", "s") else self.value / self.limit


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        self.figures: list[Figure] = []
        started = time.perf_counter()
        import fovea

        self.sampling = fovea.SamplingParams
        llm_class = fovea.LLM
        imported = time.perf_counter()
        options: dict[str, Any] = {"load_format": "dummy"} if args.dummy else {}
        options |= json.loads(args.options)
        self.llm = llm_class(args.model, max_model_len=args.len, limit_mm_per_prompt={"image": 2}, **options)
        ready = time.perf_counter()
        self.add(Figure("import", imported - started, "s"))
        self.add(Figure("start", ready - imported, "s"))
        self.limits = self._limits()

    def _limits(self) -> Any:
        from benchmarks.limits import Limits, measure

        model = self.llm.engine.model
        self.device, dtype = model.device, model.dtype
        return Limits(self.llm.family.spec, measure(self.device, dtype), dtype.itemsize)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        limit = f"{figure.limit:12.1f} {figure.share:7.0%}" if figure.limit and figure.share else ""
        print(f"{figure.name:24}{figure.value:12.2f} {figure.unit:10}{limit}", flush=True)

    def picture(self) -> Image.Image:
        """A smooth colour field with one noisy corner: distinct for each call, realistic to resize."""
        small = Image.fromarray(self.rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((self.args.w, self.args.h), Image.Resampling.BICUBIC)).copy()
        pixels[:8, :8] = self.rng.integers(0, 255, (8, 8, 3))
        return Image.fromarray(pixels)

    def request(self, pictures: int = 1, question: str = "") -> dict[str, Any]:
        head, tail = _frame(self.llm.family.name)
        tags = "".join(self.llm.family.image_text(i + 1) for i in range(pictures))
        return {
            "prompt": head + tags + question + QUESTION + tail,
            "multi_modal_data": {"image": [self.picture() for _ in range(pictures)]},
        }

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
        prompt, patches = _shape(outputs[0][0], self.llm)
        self.add(Figure("TTFT, one picture", 1e3 * ttft_s, "ms", 1e3 * self.limits.prefill_s(prompt, patches)))
        full_s = statistics.median(self.run([self.request()], 129)[0] for _ in range(5))
        limit = 1 / self.limits.decode_step_s(1, prompt + 64)
        self.add(Figure("decode alone", 128 / (full_s - ttft_s), "tok/s", limit, {"prompt_tokens": prompt}))

    def enc(self) -> None:
        requests = [self.request() for _ in range(self.args.n)]
        seconds, outputs = self.run(requests, 1)
        prompt, patches = _shape(outputs[0], self.llm)
        limit = 1 / self.limits.prefill_s(prompt, [*patches, 0])
        self.add(Figure("pictures, one token out", self.args.n / seconds, "picture/s", limit))

    def thr(self) -> None:
        self._throughput("requests", self.args.n, 1)

    def two(self) -> None:
        self._throughput("two pictures", max(1, self.args.n // 2), 2)

    def _throughput(self, name: str, count: int, pictures: int) -> None:
        seconds, outputs = self.run([self.request(pictures) for _ in range(count)], self.args.out)
        prompt, patches = _shape(outputs[0], self.llm)
        fit = int(self.llm.engine.plan.kv_tokens // (prompt + self.args.out))
        batch = min(count, fit, self.llm.config.max_num_seqs)
        prefill_s = self.limits.prefill_s(prompt, [*patches, 0])
        limit = 1 / self.limits.request_s(prefill_s, prompt, self.args.out, batch)
        more = {"prompt_tokens": prompt, "tok_s": round(count * self.args.out / seconds, 1), "batch": batch}
        self.add(Figure(f"{name}, {self.args.out} out", count / seconds, "req/s", limit, more))

    def txt(self) -> None:
        for batch in (1, 64, 256):
            if batch > max(1, self.args.n):
                break
            seconds, outputs = self.run([f"{i} {TEXT_ONLY}" for i in range(batch)], TEXT_TOKENS)
            prompt = len(outputs[0].prompt_token_ids)
            request_s = self.limits.request_s(self.limits.prefill_s(prompt, [0, 0]), prompt, TEXT_TOKENS, batch)
            self.add(Figure(f"text, batch {batch}", batch * TEXT_TOKENS / seconds, "tok/s", TEXT_TOKENS / request_s))

    def rep(self) -> None:
        base = self.request()
        requests = [{**base, "prompt": base["prompt"].replace(QUESTION, f"{i}. {QUESTION}")} for i in range(REPEATS)]
        seconds, _ = self.run(requests, REPEAT_TOKENS)
        self.add(Figure(f"one picture, {REPEATS} questions", REPEATS / seconds, "req/s"))

    def save(self) -> Path:
        ceilings = self.limits.ceilings
        content = {
            "dtype": str(self.llm.engine.model.dtype),
            "arguments": {k: v for k, v in vars(self.args).items() if k not in ("model", "commit")},
            "bandwidth_gb_s": round(ceilings.bytes_per_s / 1e9, 1),
            "matrix_tflop_s": round(ceilings.flops_per_s / 1e12, 2),
            "figures": [{**asdict(figure), "share": figure.share} for figure in self.figures],
        }
        return write_results("offline", self.args.model, self.card(), content, commit=self.args.commit)

    def card(self) -> str:
        import torch

        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


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


def _shape(output: Any, llm: Any) -> tuple[int, list[int]]:
    """Prompt tokens and tower segments (in patches) of an output."""
    segments: list[int] = []
    for media in output.media:
        plan = llm.family.plan_image(media.original_width_px, media.original_height_px, {})
        tile = (llm.family.spec.tile_px // llm.family.spec.tower.patch_px) ** 2
        segments += [tile] * (plan.num_patches // tile) if tile else [plan.num_patches]
    return len(output.prompt_token_ids), segments


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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", default="{}", help="further LLM options as JSON")
    parser.add_argument("--commit", default="", help="commit to note, where git is not at hand")
    args = parser.parse_args(argv)
    unknown = set(args.workloads.split(",")) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workloads {sorted(unknown)}; known: {', '.join(WORKLOADS)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"{'figure':24}{'value':>12} {'unit':10}{'limit':>12} {'share':>7}")
    bench = Bench(args)
    bench.first()
    for workload in args.workloads.split(","):
        getattr(bench, workload)()
    print(f"written to {bench.save()}", file=sys.stderr)


if __name__ == "__main__":
    main()

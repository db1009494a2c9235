"""Fovea against transformers.generate on the same model, machine and requests, interleaved in one run.

    python -m benchmarks.versus_transformers                 the embedded model on the CPU
    python -m benchmarks.versus_transformers MODEL --out 64

Fovea's own modules ("fovea"), and its two paths for models that transformers runs. Two arms for transformers: requests
one after the other, as its generate is used by a program that gets requests from several users, and all in one padded
batch, which needs them to arrive together. Every repetition runs all arms in turn; the ratio is of the medians, the
spread that of the repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results_file import write_results

QUESTION = "What is in this picture?"
CONCURRENT = 8


def picture(rng: np.random.Generator, side_px: int) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return small.resize((side_px, side_px), Image.Resampling.BICUBIC)


class FoveaArm:
    def __init__(self, model: str, out_tokens: int, path: str) -> None:
        from fovea import LLM, SamplingParams

        usual: dict[str, Any] = {"device": "cpu", "dtype": "float32", "enable_prefix_caching": False}
        self.llm = LLM(model, model_impl=path, use_tqdm=False, **usual)
        self.params = SamplingParams(temperature=0.0, max_tokens=out_tokens, ignore_eos=True)

    def run(self, pictures: list[Image.Image]) -> None:
        parts: list[Any] = [
            [{"role": "user", "content": [{"type": "image_pil", "image_pil": p}, {"type": "text", "text": QUESTION}]}]
            for p in pictures
        ]
        self.llm.chat(parts, self.params, use_tqdm=False)


class TransformersArm:
    def __init__(self, folder: str, out_tokens: int) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.torch = torch
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.out_tokens = out_tokens

    def batch(self, pictures: list[Image.Image]) -> None:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(text=[prompt] * len(pictures), images=pictures, return_tensors="pt", padding=True)
        with self.torch.inference_mode():
            self.model.generate(
                **inputs, do_sample=False, max_new_tokens=self.out_tokens, min_new_tokens=self.out_tokens
            )

    def one_by_one(self, pictures: list[Image.Image]) -> None:
        for item in pictures:
            self.batch([item])


def seconds(work: Callable[[list[Image.Image]], None], pictures: list[Image.Image]) -> float:
    started = time.perf_counter()
    work(pictures)
    return time.perf_counter() - started


def compare(arms: Mapping[str, Callable[[list[Image.Image]], None]], count: int, args: argparse.Namespace) -> list[Any]:
    rng = np.random.default_rng(args.seed)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.repeats + 1):
        pictures = [picture(rng, args.side) for _ in range(count)]
        for name, work in arms.items():
            times[name].append(seconds(work, pictures))
    rows = []
    ours_s = statistics.median(times["fovea"][1:])
    for name in arms:
        measured = times[name][1:]  # the first repetition warms up
        median_s = statistics.median(measured)
        row = {"requests": count, "arm": name, "median_s": median_s, "lo_s": min(measured), "hi_s": max(measured)}
        rows.append({**row, "ratio": median_s / ours_s})
        spread = f"{min(measured):.3f}-{max(measured):.3f}"
        print(f"{count:9} {name:28}{median_s:9.3f} {spread:>15} {median_s / ours_s:7.2f}x", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fovea-tiny")
    parser.add_argument("--out", type=int, default=64, help="tokens out")
    parser.add_argument("--side", type=int, default=224, help="picture side in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from fovea import EngineConfig
    from fovea.models.folder import find_model

    paths = {path: FoveaArm(args.model, args.out, path).run for path in ("fused", "generic", "compatible")}
    ours = {"fovea": paths.pop("fused"), **{f"fovea, {path} path": run for path, run in paths.items()}}
    theirs = TransformersArm(str(find_model(args.model, EngineConfig())), args.out)
    print(f"{'requests':>9} {'arm':28}{'median s':>9} {'spread':>15} {'ratio':>8}")
    rows = compare({**ours, "transformers": theirs.one_by_one}, 1, args)
    many = {**ours, "transformers one by one": theirs.one_by_one, "transformers one batch": theirs.batch}
    rows += compare(many, CONCURRENT, args)
    print(write_results("versus-transformers", args.model, "cpu", {"arguments": vars(args), "rows": rows}))


if __name__ == "__main__":
    main()

"""Fovea and its peers on a CPU: every arm in a process of its own, asked by turns, round by round, in one run.

    python -m benchmarks.cpu                                    everything that is installed, the 2B model whole
    python -m benchmarks.cpu --scale 0.15 --rounds 3            a seventh of its layers: minutes, and 3 GiB of memory
    python -m benchmarks.cpu --work decode eight --arms fovea fovea-int8 transformers
    python -m benchmarks.cpu --work text --smollm FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    python -m benchmarks.cpu --work start preprocess            no large model

A ratio is a peer's seconds over Fovea's in the same round: above 1 Fovea is faster. Its median and quartiles over the
rounds are shown, so a busy minute costs all arms alike. An arm that isn't installed or fails is named and left out;
engines that nobody asks are stopped, so they take no core. docs/performance.md says how to read the rest.
"""

from __future__ import annotations

import argparse
import base64
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.cpu_process import Arm, ArmFailedError, Running
from benchmarks.cpu_work import PUBLISHED, jpeg, prompts
from benchmarks.results_file import write_results
from fovea.core.machine import usable_cores

BIG = (
    Arm("fovea", "fovea", {"dtype": "bfloat16"}),
    Arm("fovea-float32", "fovea", {"dtype": "float32"}, bits=32.0),
    Arm("fovea-int8", "fovea", {"dtype": "bfloat16", "quantization": "int8"}, bits=8.0),
    Arm("fovea-int4", "fovea", {"dtype": "bfloat16", "quantization": "int4"}, bits=4.5),
    Arm("transformers", "transformers"),
    Arm("transformers-one-by-one", "transformers", asks={"one_by_one": True}),
    Arm("vllm", "vllm"),
)
LLAMA = Arm("llama.cpp", "llama")
USUAL = tuple(arm.name for arm in (*BIG, LLAMA) if arm.name != "fovea-float32")
WORK = ("decode", "eight", "ttft", "text", "start", "server", "preprocess")
MANY = ("eight", "text8")
HEAD_BITS = 8.0  # at least, whatever the layers have
STREAMS, PROMPT_TOKENS, PICTURE_PX = 8, 48, 560
# How many times as fast as a peer Fovea wants to be, by what is done and who the peer is.
WANTED: Mapping[tuple[str, str], float] = {
    ("decode", "transformers"): 1.3,
    ("eight", "transformers"): 3.0,
    ("ttft", "transformers"): 1.25,
    ("decode", "vllm"): 1.0,
    ("eight", "vllm"): 1.0,
    ("ttft", "vllm"): 1.0,
    ("text", "llama"): 1.0,
    ("text8", "llama"): 1.0,
    ("preprocess", "transformers"): 2.0,
}
Samples = dict[str, list[float]]


def _arguments(args: argparse.Namespace) -> dict[str, str]:
    """What decides the figures; of places, their last names."""
    given = {k: v for k, v in vars(args).items() if k not in ("folder", "log", "no_file", "commit")}
    return {k: v.name if isinstance(v, Path) else str(v) for k, v in given.items()}


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    skipped: dict[str, str] = {}
    content: dict[str, Any] = {"arguments": _arguments(args), "skipped": skipped}
    with tempfile.TemporaryDirectory() as folder, Path(args.log or f"{folder}/log").open("wb") as log:
        tools = Running("tools", args.threads, log)
        rows: list[dict[str, Any]] = []
        big = [work for work in ("decode", "eight", "ttft") if work in args.work]
        content["bandwidth_before"] = _bandwidth(tools)
        if big:
            model = Path(args.folder or f"{folder}/model")
            if not (model / "config.json").is_file():
                say(f"random weights: {args.scale:g} of the layers")
                tools.ask("make", target=str(model), published=str(args.model), scale=args.scale, seed=args.seed)
            with running([arm for arm in BIG if arm.name in args.arms], str(model), args, log, skipped) as arms:
                for work in big:
                    rows += table(work, rounds(work, arms, args, skipped), {arm.name: arm for arm, _ in arms})
            content["decode"] = _decode_share(rows, model, content["bandwidth_before"], _bandwidth(tools))
        if "text" in args.work:
            with running(_text_arms(args, skipped), str(args.smollm), args, log, skipped) as arms:
                for work in ("text", "text8") if arms else ():
                    rows += table(work, rounds(work, arms, args, skipped), {arm.name: arm for arm, _ in arms})
        if "preprocess" in args.work:
            rows += _preprocess(args, log)
        if "start" in args.work:
            rows += table("start", start_times(args.rounds), {})
        if "server" in args.work:
            content["server"] = _server(args.seed)
        content["bandwidth_after"] = _bandwidth(tools)
        tools.close()
    for name, reason in skipped.items():
        print(f"left out: {name}: {reason}")
    before, after = (content[f"bandwidth_{when}"] / 1e9 for when in ("before", "after"))
    print(f"memory read at {before:.1f} GB/s before, {after:.1f} after")
    if not args.no_file:
        name = f"qwen2-vl-2b-x{args.scale:g}" if big else "-".join(args.work)
        print(write_results("cpu", name, "cpu", {**content, "rows": rows}, commit=args.commit))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), metavar="WORK", help=", ".join(WORK))
    names = [*(arm.name for arm in BIG), LLAMA.name]
    parser.add_argument("--arms", nargs="+", choices=names, default=list(USUAL), metavar="ARM", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=5, help="of every arm, after one that isn't counted [5]")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 2B model's layers [1]")
    parser.add_argument("--out", type=int, default=32, help="tokens of an answer [32]")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each engine [the cores there are]")
    parser.add_argument("--model", type=Path, default=PUBLISHED, help="folder whose shape is taken, if it is there")
    parser.add_argument("--folder", default="", help="where the random weights are, or are to be kept")
    parser.add_argument("--smollm", type=Path, default=None, help="folder or file of SmolLM2-135M-Instruct, for Fovea")
    parser.add_argument("--gguf", type=Path, default=None, help="the same as GGUF, for llama.cpp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", default="", help="where what the engines print goes")
    parser.add_argument("--no-file", action="store_true", help="write no results file")
    parser.add_argument("--commit", default="", help="commit to note, where git is not at hand")
    return parser.parse_args(argv)


@contextmanager
def running(
    arms: Sequence[Arm], folder: str, args: argparse.Namespace, log: IO[bytes], skipped: dict[str, str]
) -> Iterator[list[tuple[Arm, Running]]]:
    """Those of `arms` that load; why others don't goes into `skipped`."""
    loaded: list[tuple[Arm, Running]] = []
    try:
        for arm in arms:
            reason = arm.missing()
            known = [process for other, process in loaded if (other.engine, other.options) == (arm.engine, arm.options)]
            if arm.asks and known:
                loaded.append((arm, known[0]))
            elif not reason:
                say(f"loading {arm.name}")
                process = Running(arm.engine, args.threads, log)
                try:
                    process.ask("load", **{"folder": folder, **arm.options})
                    loaded.append((arm, process))
                except ArmFailedError as error:
                    process.close()
                    reason = str(error)
            if reason:
                skipped[arm.name] = reason
                say(f"left out: {arm.name}: {reason}")
        yield loaded
    finally:
        for _, process in loaded:
            process.close()


def rounds(work: str, arms: list[tuple[Arm, Running]], args: argparse.Namespace, skipped: dict[str, str]) -> Samples:
    """Seconds of each arm in each round; each round another arm begins, and the first round is for warming up."""
    arms = [(arm, process) for arm, process in arms if work in MANY or not arm.asks]
    times: Samples = {arm.name: [] for arm, _ in arms}
    rng = np.random.default_rng(args.seed)
    for number in range(args.rounds + 1):
        ask = _asker(work, rng, args.out)
        turn = number % max(1, len(arms))
        for arm, process in arms[turn:] + arms[:turn]:
            if f"{arm.name}, {work}" in skipped:
                continue
            try:
                seconds = ask(process, arm.asks)
            except ArmFailedError as error:
                skipped[f"{arm.name}, {work}"] = str(error)
                times.pop(arm.name)
                continue
            if number:
                times[arm.name].append(seconds)
        say(f"{work}: round {number} of {args.rounds}")
    return {name: measured for name, measured in times.items() if measured}


def _asker(work: str, rng: np.random.Generator, out: int) -> Callable[[Running, Mapping[str, Any]], float]:
    """The same inputs for every arm of a round: seconds of a token, of all answers, or to the first token."""
    if work == "ttft":
        image = base64.b64encode(jpeg(rng, PICTURE_PX, PICTURE_PX)).decode()
        return lambda process, _: float(process.ask("picture", image=image, out=1))
    if work in MANY:
        many = prompts(rng, STREAMS, PROMPT_TOKENS)
        return lambda process, asks: float(process.ask("tokens", prompts=many, out=out, **asks))
    one = prompts(rng, 1, PROMPT_TOKENS)

    def decode(process: Running, _: Mapping[str, Any]) -> float:
        first_s = process.ask("tokens", prompts=one, out=1)
        return float(process.ask("tokens", prompts=one, out=out + 1) - first_s) / out

    return decode


def _text_arms(args: argparse.Namespace, skipped: dict[str, str]) -> list[Arm]:
    if args.smollm is None:
        skipped["text"] = "no --smollm was given"
        return []
    arms = [arm for arm in BIG if arm.name in args.arms and arm.engine in ("fovea", "transformers")]
    if args.smollm.is_file():
        arms = [arm for arm in arms if arm.is_ours]  # of a GGUF file
    if LLAMA.name in args.arms and args.gguf is None:
        skipped[LLAMA.name] = "no --gguf was given"
    elif LLAMA.name in args.arms:
        arms.append(Arm(LLAMA.name, LLAMA.engine, {"folder": str(args.gguf), "threads": args.threads}))
    return arms


def table(work: str, times: Samples, arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """Print, and return, each arm's seconds, and each peer's over each of ours in the same rounds."""
    rows = [{"work": work, "arm": name, "unit": "s", **spread(measured)} for name, measured in times.items()]
    for row in rows:
        print(f"{work:11}{row['arm']:42}{shown(row, 1e3)} ms", flush=True)
    for ours in [name for name in times if name in arms and arms[name].is_ours]:
        for peer in [name for name in times if name in arms and not arms[name].is_ours]:
            rows.append(compared(work, ours, peer, arms[peer].engine, times))
    return rows


def compared(work: str, ours: str, peer: str, engine: str, times: Samples) -> dict[str, Any]:
    """A row for how many times as fast as `peer` ours is, printed."""
    ratios = [theirs / our for theirs, our in zip(times[peer], times[ours], strict=False) if our > 0]
    wanted = WANTED.get((work, engine))
    row = {"work": work, "arm": ours, "over": peer, "unit": "x", "wanted": wanted, **spread(ratios)}
    note = f"  wanted {wanted:g}" if wanted else ""
    print(f"{work:11}{f'{ours} is faster than {peer}':42}{shown(row)} x{note}", flush=True)
    return row


def spread(values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": middle, "lower": low, "upper": high, "least": min(values), "values": list(values)}


def shown(row: Mapping[str, Any], factor: float = 1.0) -> str:
    low, middle, high = (factor * row[key] for key in ("lower", "median", "upper"))
    return f"{middle:10.4g}  ({low:.4g} to {high:.4g})"


def start_times(count: int) -> Samples:
    """Cold processes by turns: Python alone, Python that imports fovea, and `fovea run` to its answer.

    The seconds on a clock, and those that any core worked, which a busy machine changes less.
    """
    picture = Path(__file__).parents[1] / "src" / "fovea" / "assets" / "pictures" / "shapes.png"
    question = ["-m", "fovea", "run", "-q", "--device", "cpu", "--image", str(picture), "What is in this picture?"]
    commands = {"python": ["-c", ""], "import fovea": ["-c", "import fovea"], "fovea run": question}
    times: Samples = {name + kind: [] for name in commands for kind in ("", ", of cores")}
    for number in range(count + 1):
        for name, words in commands.items():
            started, worked = time.perf_counter(), _children_s()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if number:
                times[name].append(time.perf_counter() - started)
                times[f"{name}, of cores"].append(_children_s() - worked)
    return times


def _children_s() -> float:
    """Seconds that cores worked for processes which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _preprocess(args: argparse.Namespace, log: IO[bytes]) -> list[dict[str, Any]]:
    tools = Running("tools", 1, log)
    times = tools.ask("pictures", count=20 * args.rounds, seed=args.seed)
    tools.close()
    rows = table("preprocess", times, {})
    for family in ("qwen2-vl", "clip"):
        for ours in ("canvas", "patches"):
            names = f"{family}: fovea, {ours}", f"{family}: transformers, patches"
            rows.append(compared("preprocess", *names, "transformers", times))
    return rows


def _server(seed: int) -> dict[str, Any]:
    from benchmarks.load.ratio import ratio
    from benchmarks.load.report import Report

    report = Report()
    ratio(True, seed, report)
    return report.content()


def _bandwidth(tools: Running) -> float:
    """Bytes a second."""
    return float(tools.ask("bandwidth"))


def _decode_share(rows: list[dict[str, Any]], model: Path, before: float, after: float) -> dict[str, float]:
    """How much of the better of two readings of the bandwidth each arm's weights, read once a token, make up."""
    from benchmarks.limits import Ceilings, Limits
    from fovea.families.registry import load_family

    limits = Limits(load_family(model, "fused").spec, Ceilings(1.0, 1.0), 2)
    shares: dict[str, float] = {}
    bits = {arm.name: arm.bits for arm in BIG}
    for row in rows:
        if row["work"] == "decode" and row["unit"] == "s":
            layers, head = (max(least, bits[row["arm"]]) / 8 for least in (0.0, HEAD_BITS))
            rate = (layers * limits.layer_weights() + head * limits.head_weights()) / row["median"]
            shares[row["arm"]] = rate / max(before, after)
            line = f"{rate / 1e9:10.3g} GB/s of weights, {shares[row['arm']]:.0%} of the bandwidth"
            print(f"decode     {row['arm']:42}{line}")
    return shares


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

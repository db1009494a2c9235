"""Train the model for a given time: `python -m tiny.train --minutes 8.5 --out FOLDER [--resume FOLDER]`.

The learning rate reaches zero at the deadline. Weights go to two bf16 safetensors files (tiny/export.py makes the
model folder of them). Several GPUs: `torchrun --nproc-per-node N -m tiny.train ...`.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tiny import batches, quick
from tiny.model import Dense, build, normalised
from tiny.optimiser import Both

EXCLUDED = "lm_head.weight"  # tied to the embedding


def say(text: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def augmented(pictures: Tensor) -> Tensor:
    """Half of the pictures get a little noise, other contrast and other brightness; then normalised."""
    n, device = pictures.shape[0], pictures.device
    chosen = (torch.rand(n, 1, 1, 1, device=device) < 0.5).float()
    noise = torch.randn(pictures.shape, device=device) * torch.rand(n, 1, 1, 1, device=device).square() * 16
    gain = 1 + chosen * (torch.rand(n, 1, 1, 1, device=device) - 0.5) * 0.16
    shift = (torch.rand(n, 1, 1, 1, device=device) - 0.5) * 20
    return normalised((pictures.float() * gain + chosen * (noise + shift)).clamp(0, 255))


def loss_of(dense: Dense, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the answers, and the share of right next tokens."""
    seen = dense.see(augmented(batch["pictures"])) if "pictures" in batch else None
    hidden = dense.read(batch["ids"], batch["positions"], seen, batch["places"])
    logits = dense.logits(hidden.flatten(0, 1)[batch["where"]])
    losses = F.cross_entropy(logits, batch["target"], reduction="none")
    right = (logits.argmax(-1) == batch["target"]).float().mean()
    return (losses * batch["weight"]).sum() / batch["weight"].sum(), right


def save(model: nn.Module, folder: Path) -> None:
    """bf16 weights under transformers' module names, as two files."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.named_parameters() if n != EXCLUDED}
    names = sorted(state)
    for part in range(2):
        save_file({n: state[n] for n in names[part::2]}, folder / f"part{part}.safetensors")


def restore(model: nn.Module, folder: Path) -> None:
    state = {**load_file(folder / "part0.safetensors"), **load_file(folder / "part1.safetensors")}
    missing, unexpected = model.load_state_dict({n: t.float() for n, t in state.items()}, strict=False)
    if unexpected or [n for n in missing if n != EXCLUDED]:
        raise ValueError(f"{folder} does not fit the model: missing {missing}, unexpected {unexpected}")


def synchronise(model: nn.Module, world: int) -> None:
    """Mean gradients over all ranks, in one message."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world).split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


def train(args: argparse.Namespace) -> None:
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.set_float32_matmul_precision("high")
    model = build(args.seed).to(device)
    if args.resume:
        restore(model, Path(args.resume))
    dense = Dense(model)
    optimiser = Both(model, args.matrix_rate, args.other_rate, args.hold)
    groups = json.loads(args.groups) if args.groups else batches.GROUPS
    mix = json.loads(args.mix) if args.mix else batches.MIX
    stream = batches.Stream(args.seed * 100 + rank, args.tokens, mix, groups)
    loader = DataLoader(
        stream, batch_size=None, num_workers=args.workers, prefetch_factor=4 if args.workers else None,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    _loop(args, model, dense, optimiser, iter(loader), device, world)
    del loader
    if rank == 0:
        save(model, Path(args.out))
        model.bfloat16().float()
        eager = Dense(model)
        for line in quick.report(eager, device, args.evaluate, blank_control=True):
            say(line)


def _loop(
    args: argparse.Namespace,
    model: nn.Module,
    dense: Dense,
    optimiser: Both,
    stream: Iterator[dict[str, Tensor]],
    device: torch.device,
    world: int,
) -> None:
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    clock = time.monotonic
    start, mark, waited, samples, since = clock(), clock(), 0.0, 0, 0
    kept: list[Tensor] = []
    begun, counted, step = start, 0, 0
    while True:
        passed = clock() - start
        # Compilation takes its share of the first minute; the deadline holds all the same.
        progress = passed / (args.minutes * 60)
        stop = torch.tensor([float(progress >= 1 or step >= args.steps)], device=device)
        if world > 1:
            dist.broadcast(stop, 0)
        if stop.item():
            break
        for _ in range(args.micro):
            before = clock()
            batch = {k: v.to(device, non_blocking=True) for k, v in next(stream).items()}
            waited += clock() - before
            with autocast:
                loss, right = loss_of(dense, batch)
            (loss / args.micro).backward()
            kept.append(torch.stack((loss.detach(), right)))
            samples += len(batch["ids"])
            since += len(batch["ids"])
        for p in model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if world > 1:
            synchronise(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = optimiser.step(progress)
        model.zero_grad(set_to_none=False)
        step += 1
        if step in (20, 80):
            begun, rate = clock(), (samples - counted) * world / (clock() - begun)
            counted = samples
            say(f"step {step} after {begun - start:.0f} s, {rate:.0f} samples/s")
            if step == 80 and rate < args.compile_below:
                say("compiling")
                dense = Dense(model, compiled=True)
        if step % 2000 == 0:
            save(model, Path(args.out))
        if step % args.report_every == 0:
            loss_mean, right_mean = torch.stack(kept).mean(0).tolist()
            lap = clock() - mark
            say(
                f"step {step} t {clock() - start:.0f}s loss {loss_mean:.3f} right {right_mean:.3f} rate {factor:.2f} "
                f"{since * world / lap:.0f} samples/s wait {waited / lap:.0%} total {samples * world}"
            )
            kept, mark, waited, since = [], clock(), 0.0, 0
    say(f"done: {step} steps, {samples * world} samples, {clock() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--out", required=True)
    parser.add_argument("--resume")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=24000, help="tokens in a micro-batch, about")
    parser.add_argument("--micro", type=int, default=2, help="micro-batches in a step")
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--other-rate", type=float, default=0.002)
    parser.add_argument("--hold", type=float, default=0.35, help="share of the time at the full rate")
    parser.add_argument("--mix", help="JSON: weights of the tasks in a group")
    parser.add_argument("--groups", help="JSON: weights of the groups")
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--evaluate", type=int, default=256, help="examples for each task at the end")
    parser.add_argument("--compile-below", type=float, default=3500, help="compile if it runs slower (samples/s)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

"""Logits to tokens, in plain torch, with parameters of its own for every row.

Order, as in vLLM: allowed ids, bad words, logit bias, min_tokens, repetition, frequency and presence penalty,
temperature, min_p, top_k, top_p, draw. Log-probabilities are those of the raw logits, before all of that.

A row's token depends on its logits, parameters and generator only, bit for bit, whatever rows stand beside it. So no
floating-point sum takes part in a draw: a row's weights relative to its largest are whole numbers (32-bit fixed point),
whose sums are exact in any order, and one uniform number of the row's own generator picks from their running sum in the
order of the vocabulary (kernels/draw_reference.py). That number is the only one drawn for a token, on the CPU, so a
draw costs microseconds and one small copy. What top_k and top_p leave is decided by value: equal logits stand or fall
together. Tokens of less than 2**-32 of the likeliest token's probability are never drawn.

A row with every token banned gives BROKEN, one whose raw logits hold NaN or infinity NOT_FINITE; neither harms another.
Token ids outside the vocabulary are ignored.

Shapes: S rows, V vocabulary, R some of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fovea import kernels as ops
from fovea.core.params import SamplingParams
from fovea.core.types import EngineRequest, Logprob, TokenLogprobs
from fovea.engine.memory import DRAW_CHUNK_ELEMENTS

BROKEN = -1
NOT_FINITE = -2
MIN_TEMPERATURE = 1e-5  # below it a draw is greedy, as in vLLM
LOGPROBS_CHUNK_ELEMENTS = 64 * 1024**2  # of float32
_FAR = 2**62


@dataclass(slots=True)
class SamplingRow:
    """What is known of the sequence one row of logits belongs to.

    stop_token_ids: banned until params.min_tokens tokens were produced.
    generator: a CPU generator of this sequence alone; needed if `is_random(params)`.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    stop_token_ids: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()
    generator: torch.Generator | None = None


@dataclass(slots=True)
class Sampled:
    """A token for each row (BROKEN or NOT_FINITE: it has none), and the log-probabilities of rows that asked."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
    """Choose a token for each row of `logits` [S, V], which is not changed."""
    token_ids = choose(logits, rows).tolist()
    logprobs: list[TokenLogprobs | None] = [None] * len(rows)
    asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None and token_ids[i] >= 0]
    if asked:
        counts = [rows[i].params.logprobs or 0 for i in asked]
        found = _logprobs(logits[_index(asked, logits)], [token_ids[i] for i in asked], counts)
        for i, entry in zip(asked, found, strict=True):
            logprobs[i] = entry
    return Sampled(token_ids, logprobs)


def choose_likeliest(logits: Tensor) -> Tensor:
    """What `choose` gives for rows that are all plain: one token for each row of `logits` [S, V]."""
    tokens, best = ops.likeliest(logits)
    return torch.where(torch.isfinite(best), tokens, NOT_FINITE)


def choose(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The tokens of `sample` as a tensor [S] on the device of `logits`, without waiting for the device."""
    assert logits.shape[:-1] == (len(rows),), "one row of logits for each sequence"
    drawn = [i for i, row in enumerate(rows) if is_random(row.params)]
    processed = any(_has_processors(row) for row in rows)
    work = logits.float() if processed or drawn else logits  # [S, V]
    if processed:
        work = work.clone() if work is logits else work
        _process(work, rows)
    tokens, best = _argmax(work)  # [S]
    for group, truncated in _groups(drawn, rows, work):
        index = _index(group, work)
        numbers = torch.tensor([_numbers(rows[i]) for i in group], dtype=torch.float64).T.contiguous()  # [5, R]
        found = ops.draw(work, index, ops.Ways(_moved(numbers, work), truncated))  # [R]
        tokens[index] = torch.where(tokens[index] == BROKEN, BROKEN, found)
    raw_best = logits.amax(dim=-1) if processed else best  # NaN if any is NaN
    return torch.where(torch.isfinite(raw_best), tokens, NOT_FINITE)


def prompt_logprobs(logits: Tensor, next_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """For each row of `logits` [n, V] the log-probability of the token that follows, and of the `top` likeliest."""
    assert logits.shape[0] == len(next_ids), "one following token for each row of logits"
    step = max(1, LOGPROBS_CHUNK_ELEMENTS // max(1, logits.shape[1]))
    found: list[TokenLogprobs] = []
    for start in range(0, len(next_ids), step):
        ids = list(next_ids[start : start + step])
        found += _logprobs(logits[start : start + step], ids, [top] * len(ids))
    return found


def is_random(params: SamplingParams) -> bool:
    """Whether a token is drawn; else it is the likeliest, the lowest id of equals (top_k 1 included)."""
    return params.temperature >= MIN_TEMPERATURE and params.top_k != 1


def needs_output(request: EngineRequest) -> bool:
    """Whether the next token's draw, or what is said of it, needs the tokens before it on the host."""
    params = request.params
    return bool(
        params.logprobs is not None
        or params.prompt_logprobs is not None
        or request.bad_words
        or params.min_tokens
        or params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
    )


def is_plain(row: SamplingRow) -> bool:
    """Whether every token of a row is the likeliest of the raw logits, and nothing else is asked."""
    unbanned = not row.params.min_tokens and not _has_processors(row)
    return unbanned and not is_random(row.params) and row.params.logprobs is None


def make_generator(params: SamplingParams, engine_seed: int, request_number: int, index: int) -> torch.Generator | None:
    """The generator of completion `index`; None if nothing is drawn.

    With params.seed it is the same whenever and beside whatever it runs; else it follows from the engine's seed and
    the request's number.
    """
    if not is_random(params):
        return None
    origin = f"request {params.seed}" if params.seed is not None else f"engine {engine_seed} {request_number}"
    digest = hashlib.blake2b(f"{origin} {index}".encode(), digest_size=8).digest()
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def skip_draws(generator: torch.Generator, num_tokens: int) -> None:
    """Bring a fresh generator to where it stands after so many tokens."""
    for _ in range(num_tokens):
        _draw_uniform(generator)


def _argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Likeliest token of each row of `logits` [R, V], BROKEN where its logit is not finite; and that logit."""
    tokens, best = ops.likeliest(logits)
    return torch.where(torch.isfinite(best), tokens, BROKEN), best


# --- changes to the logits -------------------------------------------------------------------------------------------


def _has_processors(row: SamplingRow) -> bool:
    params = row.params
    return bool(
        params.allowed_token_ids
        or row.bad_words
        or params.logit_bias
        or _banned_until_min_tokens(row)
        or params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
    )


def _process(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Apply the processors of every row to `logits` [S, V] in place."""
    for number, row in enumerate(rows):
        if row.params.allowed_token_ids:
            _allow_only(logits[number], row.params.allowed_token_ids)
    bans = _Entries(logits)
    for number, row in enumerate(rows):
        bans.add(number, sorted(set(_banned_words(row))))
    bans.write(lambda values, _: torch.full_like(values, -torch.inf))
    bias = _Entries(logits)
    for number, row in enumerate(rows):
        if row.params.logit_bias:
            bias.add(number, list(row.params.logit_bias), list(row.params.logit_bias.values()))
    bias.write(torch.add)
    stops = _Entries(logits)
    for number, row in enumerate(rows):
        stops.add(number, sorted(_banned_until_min_tokens(row)))
    stops.write(lambda values, _: torch.full_like(values, -torch.inf))
    _penalize(logits, rows)


def _penalize(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    repeated, counted = _Entries(logits), _Entries(logits)
    for number, row in enumerate(rows):
        params = row.params
        output = np.asarray(row.output_token_ids, dtype=np.int64)
        if params.repetition_penalty != 1.0:
            prompt = np.asarray(row.prompt_token_ids, dtype=np.int64)
            repeated.add(number, np.unique(np.concatenate([prompt, output])), params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            ids, counts = np.unique(output, return_counts=True)
            counted.add(number, ids, params.frequency_penalty * counts + params.presence_penalty)
    repeated.write(lambda values, penalty: torch.where(values > 0, values / penalty, values * penalty))
    counted.write(torch.sub)


class _Entries:
    """Some entries of a matrix [S, V], each at most once, to be read, changed and written back together."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []

    def add(self, row: int, ids: Sequence[int] | NDArray[np.int64], values: ArrayLike = 0.0) -> None:
        """`ids` of one row, with a value for each or one for all; ids outside the vocabulary are left out."""
        # A client's number may be too large for 64 bits.
        small = ids if isinstance(ids, np.ndarray) else [min(token_id, _FAR) for token_id in ids]
        tokens = np.asarray(small, dtype=np.int64)
        inside = (tokens >= 0) & (tokens < self._logits.shape[1])
        if inside.any():
            tokens = tokens[inside]
            wide = np.broadcast_to(np.asarray(values, dtype=np.float32), inside.shape)[inside]
            self._parts.append((np.full_like(tokens, row), tokens, wide))

    def write(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        if not self._parts:
            return
        rows, tokens, values = (
            _moved(torch.from_numpy(np.concatenate(column)), self._logits) for column in zip(*self._parts)
        )
        self._logits[rows, tokens] = change(self._logits[rows, tokens], values)


def _allow_only(logits: Tensor, allowed: Sequence[int]) -> None:
    """Ban all but some tokens of one row [V], in place."""
    ids = _index([token_id for token_id in allowed if token_id < logits.shape[0]], logits)
    kept = logits[ids]
    logits.fill_(-torch.inf)
    logits[ids] = kept


def _banned_words(row: SamplingRow) -> Iterator[int]:
    """Ids that would complete a bad word."""
    for word in set(row.bad_words):
        if word and len(word) <= len(row.output_token_ids) + 1:
            start = len(row.output_token_ids) - (len(word) - 1)
            if tuple(row.output_token_ids[start:]) == word[:-1]:
                yield word[-1]


def _banned_until_min_tokens(row: SamplingRow) -> frozenset[int]:
    return row.stop_token_ids if len(row.output_token_ids) < row.params.min_tokens else frozenset()


# --- drawing ---------------------------------------------------------------------------------------------------------


def _groups(drawn: Sequence[int], rows: Sequence[SamplingRow], logits: Tensor) -> Iterator[tuple[list[int], bool]]:
    """Rows to draw for, in groups that are drawn alike and need bounded memory; and whether they are truncated.

    How a row is drawn follows from its own parameters, not from its group. On CUDA they are one: nothing is sorted.
    """
    if logits.is_cuda:
        if drawn:
            yield list(drawn), True
        return
    most = max(1, DRAW_CHUNK_ELEMENTS // logits.shape[1])
    for truncated in (False, True):
        alike = [i for i in drawn if _is_truncated(rows[i].params) == truncated]
        for start in range(0, len(alike), most):
            yield alike[start : start + most], truncated


def _is_truncated(params: SamplingParams) -> bool:
    return params.top_p < 1.0 or params.top_k > 0


def _numbers(row: SamplingRow) -> tuple[float, float, int, float, float]:
    """See ops.Ways."""
    params = row.params
    return 1 / params.temperature, params.min_p, max(params.top_k, 0), params.top_p, _uniform(row)


def _uniform(row: SamplingRow) -> float:
    assert row.generator is not None, "a row with a temperature needs a generator"
    return _draw_uniform(row.generator)


def _draw_uniform(generator: torch.Generator) -> float:
    return torch.rand((), dtype=torch.float64, generator=generator).item()


# --- log-probabilities -----------------------------------------------------------------------------------------------


def _logprobs(logits: Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of `logits` [R, V]: its token, and the likeliest `counts[row]`. Equal ones share a rank."""
    logprobs = logits.float().log_softmax(dim=-1)  # [R, V]
    vocab = logprobs.shape[1]
    ids = torch.tensor([min(max(token_id, 0), vocab - 1) for token_id in token_ids]).to(logits.device)
    chosen = logprobs.gather(1, ids[:, None])  # [R, 1]
    ranks = (logprobs > chosen).sum(dim=-1, keepdim=True) + 1  # [R, 1]
    values, best = logprobs.topk(min(max(counts, default=0), vocab), dim=-1)  # [R, top]
    figures = torch.cat([chosen, values], dim=1).tolist()
    places = torch.cat([ranks, best], dim=1).tolist()
    return [
        _entry(token_id, figures[i], places[i], count) for i, (token_id, count) in enumerate(zip(token_ids, counts))
    ]


def _entry(token_id: int, figures: Sequence[float], places: Sequence[int], count: int) -> TokenLogprobs:
    """Put together one row's entry: the token itself first, then the likeliest in order."""
    entry = {token_id: Logprob(figures[0], places[0])}
    rank = 1
    for position, (logprob, other) in enumerate(zip(figures[1 : count + 1], places[1 : count + 1]), 1):
        rank = rank if position > 1 and logprob == figures[position - 1] else position
        entry.setdefault(other, Logprob(logprob, rank))
    return entry


def _index(numbers: Sequence[int], like: Tensor) -> Tensor:
    return _moved(torch.tensor(numbers, dtype=torch.int64), like)


def _moved(tensor: Tensor, like: Tensor) -> Tensor:
    """On the device of `like`, without waiting for it."""
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor

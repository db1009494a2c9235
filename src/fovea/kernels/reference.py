"""The plain torch form of every operation: the CPU path, and what each faster kernel is tested against.

Arithmetic follows transformers: norms and rotary in float32, matrix products in the model's type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.kernels import kv_pages
from fovea.kernels.batch import PLAIN, AttentionBatch, AttentionRule
from fovea.kernels.kv_pages import Pages

QUICK_GELU_SLOPE = 1.702
RULED_QUERIES = 256  # of a sequence at a time: with a soft cap all their weights are there at once


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (RMSNorm, arXiv:1910.07467)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def layer_norm(x: Tensor, norm: nn.LayerNorm, shift: Tensor | None = None) -> Tensor:
    """The LayerNorm of x [P, width], or of x + shift, a row [width] in float32 that x is without."""
    normed: Tensor = norm(x if shift is None else (x + shift).to(x.dtype))
    return normed


def linear_add(x: Tensor, linear: nn.Module, residual: Tensor) -> Tensor:
    """residual + linear(x). A kernel may write it over the residual."""
    product: Tensor = linear(x)
    return residual + product


def logits(x: Tensor, head: nn.Module | Tensor) -> Tensor:
    """x [T, hidden] times a head, or an embedding table [V, hidden]: values as precise as x's type, or float32."""
    product: Tensor = F.linear(x, head) if isinstance(head, Tensor) else head(x)
    return product


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value's place in each row of [R, V], the first of equals, int64 [R]; and the value, in float32.

    A row with NaN gives NaN and the place of one.
    """
    tokens = logits.argmax(dim=-1)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0].float()


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for rows that hold gate and up side by side: [T, 2 * F] to [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up in its tanh form for rows that hold both side by side: [T, 2 * F] to [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def rotary(
    positions: Tensor, regimes: Tensor, inv_freq: Tensor, scales: Tensor, sections: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """Cos and sin of tokens [T, D / 2] in float32, times their regime's scale.

    positions [rows, T], regimes [T], inv_freq [regimes, D / 2]; `sections`: how many frequencies use each row.
    """
    angles = positions.float()[:, :, None] * inv_freq[regimes]  # [rows, T, D / 2]
    if sections is not None:
        chunks = angles.split(sections, dim=-1)
        angles = torch.cat([chunk[row] for row, chunk in enumerate(chunks)], dim=-1)[None]
    scale = scales[regimes][:, None]
    return angles[0].cos() * scale, angles[0].sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves rotated against each other (RoFormer, arXiv:2104.09864).

    x [T, heads, D]; cos and sin [T, D / 2] in float32, or shorter: then the dimensions behind theirs stay.
    """
    turned = 2 * cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], cos, sin), x[..., turned:]), dim=-1)
    wide, cos, sin = x.float(), cos[:, None], sin[:, None]
    made = torch.empty_like(wide)
    (low, high), (low_made, high_made) = wide.chunk(2, dim=-1), made.chunk(2, dim=-1)
    torch.mul(low, cos, out=low_made).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=high_made).addcmul_(low, sin)
    return made.to(x.dtype)


def rotate_qk(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the query and key heads of [P, 3 heads, D], values stay. A kernel may do it in place."""
    turned = 2 * qkv.shape[1] // 3
    return torch.cat((rotate(qkv[:, :turned], cos, sin), qkv[:, turned:]), dim=1)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (arXiv:1606.08415 section 2)."""
    gate = x * QUICK_GELU_SLOPE
    return gate.sigmoid_().mul_(x)


def rotate_and_store(qkv: Tensor, num_heads: int, k_cache: Pages, v_cache: Pages, batch: AttentionBatch) -> Tensor:
    """Rotate queries and keys, store keys and values at their slots of the pages, return the queries.

    qkv [T, N + 2 G, D] to [T, N, D]; pages are [blocks, block_size, G, D].
    """
    num_kv_heads = k_cache.shape[2]
    rotated = rotate(qkv[:, :-num_kv_heads], batch.cos, batch.sin)
    kv_pages.store(k_cache, batch.slots, rotated[:, num_heads:])
    kv_pages.store(v_cache, batch.slots, qkv[:, -num_kv_heads:])
    return rotated[:, :num_heads]


def paged_attention(
    q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch, rule: AttentionRule = PLAIN
) -> Tensor:
    """Causal attention of the new tokens over their sequences' cached keys: q [T, N, D] to [T, N, D]."""
    if rule is not PLAIN or batch.open_spans is not None:
        return ruled_attention(q, k_cache, v_cache, batch, rule)
    decoded = _decode(q[: batch.num_decode], k_cache, v_cache, batch) if batch.num_decode else None
    return paged_prefill(q, k_cache, v_cache, batch, decoded)


def paged_prefill(q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch, decoded: Tensor | None) -> Tensor:
    """The sequences with several new tokens, behind the finished rows of those with one."""
    parts = [] if decoded is None else [decoded]
    start = batch.num_decode
    for i in range(batch.num_decode, len(batch.query_lens)):
        end = start + batch.query_lens[i]
        keys, values = (
            _gather(cache, batch.block_tables[i], batch.kv_lens[i], q.dtype) for cache in (k_cache, v_cache)
        )
        parts.append(_prefill(q[start:end], keys, values))
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gather(cache: Pages, table: Tensor, kv_len: int, dtype: torch.dtype) -> Tensor:
    """A sequence's keys or values [kv_len, G, D]."""
    num_blocks = -(-kv_len // cache.shape[1])
    return kv_pages.gather(cache, table[:num_blocks], dtype).flatten(0, 1)[:kv_len]


def _decode(q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch) -> Tensor:
    """One query for each sequence, padded to the longest; a KV head's query group is read as several queries."""
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[2]
    num_blocks = -(-max(batch.kv_lens[:num_seqs]) // k_cache.shape[1])
    tables = batch.block_tables[:num_seqs, :num_blocks]
    rows = (kv_pages.gather(cache, tables, q.dtype) for cache in (k_cache, v_cache))
    keys, values = (blocks.flatten(1, 2).transpose(1, 2) for blocks in rows)  # [S, G, keys, D]
    if batch.decode_mask is None:
        keys, values = keys[:, :, : batch.kv_lens[0]], values[:, :, : batch.kv_lens[0]]
    grouped = q.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=batch.decode_mask)
    return out.reshape(num_seqs, num_heads, head_dim)


def _prefill(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The last queries of one sequence, each over the keys up to its own place."""
    num_queries, num_keys = q.shape[0], keys.shape[0]
    group = q.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    mask = None
    if num_queries != num_keys:
        places = torch.arange(num_keys - num_queries, num_keys, device=q.device)
        mask = torch.arange(num_keys, device=q.device) <= places[:, None]
    rows = [x.transpose(0, 1)[None] for x in (q, keys, values)]
    out = F.scaled_dot_product_attention(rows[0], rows[1], rows[2], attn_mask=mask, is_causal=mask is None)
    return out[0].transpose(0, 1)


def ruled_attention(q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch, rule: AttentionRule) -> Tensor:
    """paged_attention with a rule, or with open spans."""
    count, parts = batch.num_decode, []
    if count:
        parts.append(_ruled_decode(q[:count], k_cache, v_cache, batch, rule))
    start = count
    for i in range(count, len(batch.query_lens)):
        end = start + batch.query_lens[i]
        keys, values = (
            _gather(cache, batch.block_tables[i], batch.kv_lens[i], q.dtype) for cache in (k_cache, v_cache)
        )
        spans = () if batch.open_spans is None else batch.open_spans[i]
        old, (k, v) = batch.kv_lens[i] - batch.query_lens[i], (x.transpose(0, 1)[None] for x in (keys, values))
        for first in range(start, end, RULED_QUERIES):
            some = q[first : min(end, first + RULED_QUERIES)]
            mask = visible(old + first - start, len(some), len(keys), rule, spans, q.device)
            parts.append(_weighted(some.transpose(0, 1)[None], k, v, mask, rule)[0].transpose(0, 1))
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def visible(
    first_query: int,
    num_queries: int,
    num_keys: int,
    rule: AttentionRule,
    spans: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Tensor:
    """Which keys so many queries from a place on see: [queries, keys], as transformers' masks have it."""
    places = torch.arange(first_query, first_query + num_queries, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)
    seen = keys <= places
    together = torch.zeros_like(seen)
    for first, end in spans:
        together |= (first <= places) & (places < end) & (first <= keys) & (keys < end)
    if rule.window is None:
        return seen | together
    near = keys > places - rule.window
    return (seen & near) | together if rule.spans_exceed_window else (seen | together) & near


def _ruled_decode(q: Tensor, k_cache: Pages, v_cache: Pages, batch: AttentionBatch, rule: AttentionRule) -> Tensor:
    """One query for each sequence, over the pages that any of them can see."""
    lengths = batch.kv_lens[: len(q)]
    firsts = [0 if rule.window is None else max(0, length - rule.window) for length in lengths]
    if rule.spans_exceed_window and batch.open_spans is not None:
        pairs = zip(firsts, batch.open_spans, strict=False)
        firsts = [min([first, *(start for start, _ in spans)]) for first, spans in pairs]
    size = k_cache.shape[1]
    skipped, end = min(firsts) // size, -(-max(lengths) // size)
    tables = batch.block_tables[: len(q), skipped:end]
    rows = (kv_pages.gather(cache, tables, q.dtype) for cache in (k_cache, v_cache))
    keys, values = (blocks.flatten(1, 2).transpose(1, 2) for blocks in rows)  # [S, G, keys, D]
    places = torch.arange(skipped * size, end * size, device=q.device)
    limits = torch.tensor([firsts, lengths], device=q.device)[:, :, None]
    mask = (limits[0] <= places) & (places < limits[1])  # [S, keys]
    return _weighted(q[:, :, None], keys, values, mask[:, None, None], rule)[:, :, 0]


def _weighted(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, rule: AttentionRule) -> Tensor:
    """q [S, N, queries, D] over keys and values [S, G, keys, D], where the mask is True."""
    group = q.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    if rule.softcap is None:
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=rule.scale)
    scale = q.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = (q @ keys.transpose(2, 3)) * scale
    scores = (scores / rule.softcap).tanh() * rule.softcap
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1, dtype=torch.float32)
    return weights.to(q.dtype) @ values


def segment_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Full attention inside each segment of packed [P, heads, D]; runs of equal lengths are done together."""
    parts, start, i = [], 0, 0
    while i < len(lengths):
        j = i
        while j < len(lengths) and lengths[j] == lengths[i]:
            j += 1
        count, length = j - i, lengths[i]
        end = start + count * length
        rows = [x[start:end].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(rows[0], rows[1], rows[2]).transpose(1, 2).flatten(0, 1))
        start, i = end, j
    return parts[0] if len(parts) == 1 else torch.cat(parts)

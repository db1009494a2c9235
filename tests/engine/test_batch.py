"""From chunks to tensors: every token at its slot, every picture row at its place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fovea.core.params import SamplingParams
from fovea.core.types import ROW, EngineRequest, MediaItem, MediaSpan
from fovea.engine.batch import build_batch, insert_embeddings
from fovea.engine.encoder_cache import EncoderCache
from fovea.engine.scheduler import Chunk
from fovea.engine.sequence import Sequence
from fovea.families.spec import RopeRegime, RopeSpec
from fovea.models.decoder import Rope
from tests.engine.fakes import grow

CPU = torch.device("cpu")
ROPE = Rope(RopeSpec((RopeRegime(1e4), RopeRegime(1e4, (2.0, 4.0), 1.5)), switch_tokens=100), 4, CPU)
MROPE = Rope(RopeSpec((RopeRegime(1e4),), sections=(1, 1, 2)), 8, CPU)


def chunk(
    start: int, end: int, blocks: list[int], *, length: int = 20, params: SamplingParams | None = None, **request: Any
) -> Chunk:
    made = EngineRequest("r", tuple(range(100, 100 + length)), params or SamplingParams(), frozenset(), **request)
    sequence = Sequence(made, 0, None)
    sequence.blocks, sequence.num_computed = blocks, start
    return Chunk(sequence, start, end, samples=end == length)


def test_tokens_slots_tables_and_sampled_rows() -> None:
    chunks = [chunk(19, 20, [7, 2, 5, 9, 1]), chunk(0, 6, [3, 8], length=6), chunk(2, 5, [4, 6])]
    batch = build_batch(chunks, ROPE, 4, CPU)
    assert batch.token_ids.tolist() == [119, *range(100, 106), *range(102, 105)]
    assert batch.attention.slots.tolist() == [1 * 4 + 3, 12, 13, 14, 15, 32, 33, 18, 19, 24]
    assert batch.attention.block_tables.tolist() == [[7, 2, 5, 9, 1], [3, 8, 0, 0, 0], [4, 6, 0, 0, 0]]
    assert batch.attention.kv_lens == batch.attention.kv_lens_tensor.tolist() == [20, 6, 5]
    assert batch.attention.query_lens == [1, 6, 3]
    assert batch.attention.num_decode == 1
    assert batch.attention.query_starts is not None
    assert batch.attention.query_starts.tolist() == [0, 1, 7, 10]
    assert batch.last is not None
    assert batch.last.rows.tolist() == [0, 6, 9]
    assert batch.last.attention.kv_lens == [20, 6, 5]
    assert batch.last.attention.num_decode == 3
    assert batch.logit_rows.tolist() == [0, 1], "the third chunk does not reach the end of its prompt"


def test_all_final_states_are_there_where_a_prompt_is_scored_or_nothing_is_left_out() -> None:
    params = SamplingParams(prompt_logprobs=0)
    scored = [chunk(8, 9, [0, 1, 2], length=9), chunk(0, 6, [3, 8], length=6, params=params)]
    batch = build_batch(scored, ROPE, 4, CPU)
    assert batch.last is None
    assert batch.logit_rows.tolist() == [0, 6]
    decode = build_batch(scored[:1], ROPE, 4, CPU)
    assert decode.last is None
    assert decode.logit_rows.tolist() == [0]


def test_the_decode_mask_covers_exactly_the_keys_that_exist() -> None:
    chunks = [chunk(length - 1, length, list(range(3)), length=length) for length in (3, 9, 1)]
    mask = build_batch(chunks, ROPE, 4, CPU).attention.decode_mask
    assert mask is not None
    assert mask.shape == (3, 1, 1, 12)
    assert mask.sum(dim=-1).flatten().tolist() == [3, 9, 1]
    assert mask[0, 0, 0, :3].all()


def test_equal_lengths_need_no_mask() -> None:
    chunks = [chunk(8, 9, [0, 1, 2], length=9), chunk(8, 9, [3, 4, 5], length=9)]
    assert build_batch(chunks, ROPE, 4, CPU).attention.decode_mask is None


def test_each_sequence_turns_by_its_own_regime() -> None:
    short, long = chunk(5, 6, [0, 1]), chunk(5, 6, [2, 3])
    long.sequence.regime = 1
    attention = build_batch([short, long], ROPE, 4, CPU).attention
    frequencies = torch.tensor([1.0, 0.01])
    torch.testing.assert_close(attention.cos[0], (5 * frequencies).cos())
    torch.testing.assert_close(attention.cos[1], 1.5 * (5 * frequencies / torch.tensor([2.0, 4.0])).cos())
    torch.testing.assert_close(attention.sin[1], 1.5 * (5 * frequencies / torch.tensor([2.0, 4.0])).sin())


def test_text_beside_three_row_positions_counts_the_same_in_all_rows() -> None:
    rows: NDArray[np.int32] = np.array([[0, 1, 1, 1], [0, 1, 1, 2], [0, 1, 2, 1]], np.int32)
    picture = chunk(2, 4, [0], length=4, positions=rows, position_delta=-1)
    text = chunk(6, 8, [1, 2])
    attention = build_batch([picture, text], MROPE, 4, CPU).attention
    frequencies = 1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8)
    places = torch.tensor([[1, 1, 2, 2], [1, 2, 1, 1], [6, 6, 6, 6], [7, 7, 7, 7]])  # row of each frequency: t, h, w, w
    torch.testing.assert_close(attention.cos, (places * frequencies).cos())


def test_generated_tokens_behind_a_picture_follow_the_shift() -> None:
    rows = np.stack([np.arange(4, dtype=np.int32)] * 3)
    decode = chunk(5, 6, [0, 1], length=4, positions=rows, position_delta=-2)
    for token in (1, 2):
        grow(decode.sequence, token)
    attention = build_batch([decode], MROPE, 4, CPU).attention
    frequencies = 1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(attention.cos[0], (3 * frequencies).cos())


def picture(key: bytes, num_tokens: int, embeds: NDArray[np.float32] | None = None) -> MediaItem:
    return MediaItem(key, num_tokens, num_tokens, (1, 1, num_tokens), embeds=embeds)


@pytest.mark.parametrize(("start", "end"), [(0, 12), (0, 3), (2, 5), (3, 4), (5, 9), (6, 12), (11, 12)])
def test_rows_of_cut_pictures_land_where_their_tokens_are(start: int, end: int) -> None:
    """Two pictures at [2, 6) and [7, 10), one from the tower and one handed in, behind another sequence's token."""
    given = 1000.0 + np.arange(3, dtype=np.float32)[:, None].repeat(2, 1)
    cache: EncoderCache[torch.Tensor] = EncoderCache(1000)
    cache.reserve(b"a", 10)
    cache.fill(b"a", 500.0 + torch.arange(4.0)[:, None].expand(4, 2))
    shown = chunk(
        start,
        end,
        [0, 1, 2],
        length=12,
        spans=(MediaSpan(2, 4), MediaSpan(7, 3)),
        media=(picture(b"a", 4), picture(b"b", 3, given)),
    )
    x = torch.full((1 + end - start, 2), -1.0)
    insert_embeddings(x, [chunk(4, 5, [3, 4]), shown], cache)
    want = {**{2 + i: 500.0 + i for i in range(4)}, **{7 + i: 1000.0 + i for i in range(3)}}
    assert x[:, 0].tolist() == [-1.0, *(want.get(place, -1.0) for place in range(start, end))]
    assert torch.equal(x[:, 0], x[:, 1])


@pytest.mark.parametrize(("start", "end"), [(0, 8), (0, 3), (3, 5), (4, 5), (5, 8), (6, 7)])
def test_rows_handed_in_leave_the_text_between_them_alone(start: int, end: int) -> None:
    """A picture at [2, 7) whose second and fourth token are text."""
    given = 1000.0 + np.arange(3, dtype=np.float32)[:, None].repeat(2, 1)
    item = replace(picture(b"b", 5, given), ids=(ROW, 40, ROW, 41, ROW))
    shown = chunk(start, end, [0, 1], length=8, spans=(MediaSpan(2, 5),), media=(item,))
    x = torch.full((1 + end - start, 2), -1.0)
    insert_embeddings(x, [chunk(4, 5, [3, 4]), shown], EncoderCache(1000))
    want = {2: 1000.0, 4: 1001.0, 6: 1002.0}
    assert x[:, 1].tolist() == [-1.0, *(want.get(place, -1.0) for place in range(start, end))]


def test_rows_are_cast_to_the_type_of_the_model() -> None:
    cache: EncoderCache[torch.Tensor] = EncoderCache(1000)
    given = np.full((2, 2), 3.0, np.float32)
    shown = chunk(0, 4, [0], length=4, spans=(MediaSpan(1, 2),), media=(picture(b"b", 2, given),))
    x = torch.zeros(4, 2, dtype=torch.bfloat16)
    insert_embeddings(x, [shown], cache)
    assert x[:, 0].tolist() == [0.0, 3.0, 3.0, 0.0]

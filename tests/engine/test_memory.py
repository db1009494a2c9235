"""The memory plan is arithmetic: what is planned fits, and what does not fit is refused with the numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.core.config import GIB, MIB, EngineConfig
from fovea.core.errors import CapacityError, InvalidOptionError
from fovea.engine.memory import (
    CPU_ENCODER_BYTES,
    CPU_KV_MAX_BYTES,
    GPU_RESERVE_BYTES,
    Machine,
    MemoryPlan,
    plan_memory,
    workspace_bytes,
)
from fovea.families.spec import DecoderSpec, ModelSpec, ProjectorSpec, RopeRegime, RopeSpec, TowerSpec

# 2 * 4 layers * 2 kv heads * 8 values: 128 elements for each token.
SPEC = ModelSpec(
    decoder=DecoderSpec(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        norm_eps=1e-6,
        rope=RopeSpec((RopeRegime(1e4),)),
        qkv_bias=False,
        tied_head=False,
        max_positions=1000,
    ),
    tower=TowerSpec(2, 16, 2, 32, "gelu", 1e-6, 14),
    projector=ProjectorSpec(merge=2, mid_width=32, out_width=32),
    encoder="merged_grid",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    dtype="float32",
)
TOKEN_BYTES = 128 * 4
CPU = Machine("cpu", 16 * GIB, 8 * GIB)


def plan(machine: Machine = CPU, *, weights: int = MIB, largest: int = 64, **options: Any) -> MemoryPlan:
    config = EngineConfig.from_options(options)
    return plan_memory(SPEC, config, machine, weights_bytes=weights, element_bytes=4, largest_picture_patches=largest)


def test_bytes_asked_for_become_whole_blocks() -> None:
    got = plan(kv_cache_memory_bytes=TOKEN_BYTES * 1607, block_size=16)
    assert (got.num_blocks, got.block_size, got.kv_tokens) == (100, 16, 1600)
    assert got.kv_bytes == 1600 * TOKEN_BYTES


def test_no_more_blocks_than_can_ever_be_used() -> None:
    assert plan(max_num_seqs=3, max_model_len=100, block_size=16).num_blocks == 3 * 7


def test_without_a_wish_the_length_is_the_model_s_or_what_fits() -> None:
    assert plan().max_model_len == 1000
    assert plan(kv_cache_memory_bytes=TOKEN_BYTES * 500).max_model_len == 31 * 16


def test_a_wished_length_that_fits_is_kept_and_one_beyond_the_model_is_refused() -> None:
    assert plan(max_model_len=999).max_model_len == 999
    with pytest.raises(InvalidOptionError, match=r"max_model_len is 1,001; the model's positions end at 1,000"):
        plan(max_model_len=1001)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"kv_cache_memory_bytes": TOKEN_BYTES * 500, "max_model_len": 600}, ["496 tokens", "600"]),
        ({"kv_cache_memory_bytes": TOKEN_BYTES * 15}, ["0 tokens", "1,000"]),
        ({"kv_cache_memory_bytes": 1}, ["0 tokens", "1,000"]),
    ],
    ids=["less than one request", "less than one block", "nothing"],
)
def test_too_small_a_cache_is_refused_with_the_numbers_and_the_way_out(
    options: dict[str, Any], numbers: list[str]
) -> None:
    with pytest.raises(CapacityError) as caught:
        plan(**options)
    assert all(number in str(caught.value) for number in numbers), caught.value
    assert "kv_cache_memory_bytes" in str(caught.value)


def test_weights_that_do_not_fit_are_refused_on_each_kind_of_machine() -> None:
    with pytest.raises(CapacityError, match=r"need 9\.\d\d GiB, 8\.00 GiB of memory are free"):
        plan(weights=9 * GIB)
    with pytest.raises(CapacityError, match=r"of GPU memory are planned with.*gpu_memory_utilization"):
        plan(Machine("cuda", 10 * GIB, 10 * GIB), weights=9 * GIB)


def test_a_cpu_keeps_most_of_its_free_memory() -> None:
    options: dict[str, Any] = {"max_num_seqs": 10**6}
    assert plan(Machine("cpu", 64 * GIB, 4 * GIB), **options).kv_bytes <= GIB
    assert plan(Machine("cpu", 640 * GIB, 600 * GIB), **options).kv_bytes <= CPU_KV_MAX_BYTES


def test_a_gpu_s_share_is_of_the_total_and_never_more_than_is_free() -> None:
    for free, utilization in ((80, 0.5), (80, 0.9), (20, 0.9)):
        machine = Machine("cuda", 80 * GIB, free * GIB)
        got = plan(machine, weights=GIB, gpu_memory_utilization=utilization, max_num_seqs=10**6)
        planned = got.weights_bytes + got.workspace_bytes + got.encoder_cache_bytes + got.kv_bytes
        usable = min(free * GIB, int(80 * GIB * utilization)) - GPU_RESERVE_BYTES
        assert usable - TOKEN_BYTES * 16 < planned <= usable


def test_there_is_always_room_for_the_embeddings_of_one_largest_picture() -> None:
    row = 32 * 4
    assert plan().encoder_cache_bytes == CPU_ENCODER_BYTES
    got = plan(encoder_cache_bytes=0, max_num_batched_patches=10, largest=64)
    assert got.max_picture_patches == 64
    assert got.encoder_cache_bytes >= 64 // 4 * row
    assert plan(encoder_cache_bytes=5 * MIB).encoder_cache_bytes == 5 * MIB


def test_the_workspace_is_for_the_largest_picture_that_a_prompt_can_hold() -> None:
    """A prompt of 100 tokens holds at most 400 patches, however large pictures may be."""
    got = plan(max_model_len=100, max_num_batched_patches=1, largest=10**9)
    assert got.max_picture_patches == 400
    config = EngineConfig.from_options({"max_model_len": 100, "max_num_batched_patches": 1})
    assert got.workspace_bytes == workspace_bytes(SPEC, config, 4, 400)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    free=st.integers(0, 40 * GIB),
    weights=st.integers(0, 20 * GIB),
    kv=st.none() | st.integers(1, 4 * GIB),
    length=st.none() | st.integers(1, 1000),
    block_size=st.sampled_from([1, 16, 256]),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_a_plan_holds_one_request_of_the_longest_length_or_is_refused(
    free: int, weights: int, kv: int | None, length: int | None, block_size: int, device: str
) -> None:
    try:
        got = plan(
            Machine(device, 40 * GIB, free),
            weights=weights,
            kv_cache_memory_bytes=kv,
            max_model_len=length,
            block_size=block_size,
        )
    except CapacityError:
        return
    assert got.max_model_len <= got.kv_tokens
    assert got.max_model_len == (length or got.max_model_len) <= 1000
    assert got.kv_bytes == got.kv_tokens * TOKEN_BYTES
    if kv is None:
        assert got.weights_bytes + got.workspace_bytes + got.encoder_cache_bytes + got.kv_bytes <= free


def test_the_plan_is_printed_with_all_its_parts() -> None:
    text = str(plan(kv_cache_memory_bytes=TOKEN_BYTES * 1600, encoder_cache_bytes=5 * MIB, weights=2 * GIB))
    for part in ("weights 2.00 GiB", "1,600 tokens in 100 blocks", "picture embeddings 5 MiB", "max_model_len 1,000"):
        assert part in text

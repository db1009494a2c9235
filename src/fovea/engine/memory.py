"""Where the bytes go: a plan by arithmetic before anything is allocated, printed at start.

Weights are counted from the spec, activations bounded by the step budgets, and what is left becomes KV blocks. Nothing
is measured by running the model on made-up input.
"""

from __future__ import annotations

from dataclasses import dataclass

from fovea.core.config import GIB, MIB, EngineConfig
from fovea.core.errors import CapacityError, InvalidOptionError
from fovea.families.spec import ModelSpec

CPU_KV_SHARE, CPU_KV_MAX_BYTES = 0.25, 4 * GIB
CPU_ENCODER_BYTES, GPU_ENCODER_SHARE = 256 * MIB, 0.02
GPU_RESERVE_BYTES = 768 * MIB  # library handles and workspaces, allocator slack
DRAW_CHUNK_ELEMENTS = 8 * 1024**2  # the sampler draws in chunks of this many logits
DRAW_ELEMENT_BYTES = 64  # what a draw holds for each value of a chunk
RULED_QUERIES = 256  # of kernels/reference.py
DENSE_ROWS = 256  # of models/moe.py, FEW_TOKENS
FP8_BYTES, KV_SCALE_BYTES = 1, 4  # of a value, and of one for each head, of kernels/kv_pages.py
LOGIT_ROWS_AT_ONCE = 256  # prompt log-probabilities are computed in slices of this many rows


@dataclass(frozen=True, slots=True)
class Machine:
    """What the device has, read once at start."""

    device: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    weights_bytes: int
    workspace_bytes: int
    encoder_cache_bytes: int
    kv_bytes: int
    num_blocks: int
    block_size: int
    max_model_len: int
    max_picture_patches: int
    fp8_kv: bool = False  # keys and values in float8, with scales

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def __str__(self) -> str:
        return (
            f"memory plan: weights {_size(self.weights_bytes)}, KV cache{' in float8' if self.fp8_kv else ''} "
            f"{_size(self.kv_bytes)} ({self.kv_tokens:,} tokens in {self.num_blocks:,} blocks), picture embeddings "
            f"{_size(self.encoder_cache_bytes)}, workspace {_size(self.workspace_bytes)}; "
            f"max_model_len {self.max_model_len:,}"
        )


def plan_memory(
    spec: ModelSpec,
    config: EngineConfig,
    machine: Machine,
    *,
    weights_bytes: int,
    element_bytes: int,
    largest_picture_patches: int,
) -> MemoryPlan:
    """Split the device's memory. `machine.free_bytes` is before the weights are loaded.

    Raises CapacityError if the weights, or one request of `max_model_len`, do not fit.
    """
    wanted_len = _wanted_len(spec, config)
    fp8_kv = config.kv_cache_dtype == "fp8"
    value_bytes, scale_bytes = (FP8_BYTES, KV_SCALE_BYTES) if fp8_kv else (element_bytes, 0)
    block_bytes = spec.decoder.kv_bytes_per_token(value_bytes, scale_bytes) * config.block_size
    fitting_patches = min(largest_picture_patches, wanted_len * spec.projector.merge**2)
    max_patches = max(config.max_num_batched_patches, fitting_patches)
    workspace = workspace_bytes(spec, config, element_bytes, max_patches)
    encoder = _encoder_bytes(spec, config, machine, min(wanted_len, max_patches), element_bytes)
    if config.kv_cache_memory_bytes is not None:
        budget = config.kv_cache_memory_bytes
    else:
        budget = _kv_budget(config, machine, weights_bytes + workspace + encoder)
    useful = config.max_num_seqs * _blocks(wanted_len, config.block_size)
    num_blocks = min(useful, budget // block_bytes)
    max_len = wanted_len
    if num_blocks * config.block_size < wanted_len:
        max_len = num_blocks * config.block_size
        if config.max_model_len is not None or max_len < config.block_size:
            raise CapacityError(
                f"The KV cache gets {_size(max(0, budget))}: {max(0, max_len):,} tokens; "
                f"max_model_len is {wanted_len:,}. Lower it, or raise gpu_memory_utilization or kv_cache_memory_bytes."
            )
    return MemoryPlan(
        weights_bytes=weights_bytes,
        workspace_bytes=workspace,
        encoder_cache_bytes=encoder,
        kv_bytes=num_blocks * block_bytes,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_model_len=max_len,
        max_picture_patches=max_patches,
        fp8_kv=fp8_kv,
    )


def workspace_bytes(spec: ModelSpec, config: EngineConfig, element_bytes: int, max_patches: int) -> int:
    """An upper bound of what a step holds beside weights and caches: decoder, logits and tower at their widest."""
    decoder, tower = spec.decoder, spec.tower
    heads = decoder.num_heads + 2 * decoder.num_kv_heads
    row = 3 * decoder.hidden_size + spec.row_width + 3 * heads * decoder.head_dim + 3 * decoder.intermediate_size
    step = (config.max_num_batched_tokens * row + _expert_values(spec, config)) * element_bytes
    values = max(config.max_num_seqs, LOGIT_ROWS_AT_ONCE) * decoder.vocab_size
    logits = values * 4 * 3 + min(values, DRAW_CHUNK_ELEMENTS) * DRAW_ELEMENT_BYTES
    kept_rows = 2 * len(tower.feature_layers)  # each feature layer, and all of them joined
    mlp_rows = 3 if tower.gated else 2
    patch_row = (6 + kept_rows) * tower.width + mlp_rows * tower.mlp_width + tower.patch_values
    pixels = 3 * tower.patch_values * 4
    patches = max_patches * (patch_row * element_bytes + pixels)
    return step + logits + patches + _capped_bytes(spec, config)


def _capped_bytes(spec: ModelSpec, config: EngineConfig) -> int:
    """Weights of attention with a soft cap, which are there as a whole for so many queries (kernels/reference.py)."""
    if spec.decoder.attention_softcap is None:
        return 0
    return 3 * 4 * spec.decoder.num_heads * RULED_QUERIES * (config.max_model_len or spec.decoder.max_positions)


def _expert_values(spec: ModelSpec, config: EngineConfig) -> int:
    """What a mixture of experts holds at once in either of its ways (models/moe.py)."""
    moe, most = spec.decoder.moe, config.max_num_batched_tokens
    if moe is None:
        return 0
    sorted_rows = most * moe.top_k * (3 * spec.decoder.hidden_size + 3 * moe.width)
    all_rows = min(most, DENSE_ROWS) * moe.num_experts * (2 * spec.decoder.hidden_size + 3 * moe.width)
    return max(sorted_rows, all_rows) + most * 3 * moe.shared_width


def _wanted_len(spec: ModelSpec, config: EngineConfig) -> int:
    decoder = spec.decoder
    wanted = decoder.max_positions if config.max_model_len is None else config.max_model_len
    if wanted > decoder.max_positions:
        raise InvalidOptionError(
            f"max_model_len is {wanted:,}; the model's positions end at {decoder.max_positions:,}."
        )
    return wanted


def _encoder_bytes(spec: ModelSpec, config: EngineConfig, machine: Machine, most_rows: int, element_bytes: int) -> int:
    """Room for the embeddings of at least the largest picture."""
    if not spec.takes_pictures:
        return 0
    least = most_rows * spec.row_width * element_bytes
    if config.encoder_cache_bytes is not None:
        return max(config.encoder_cache_bytes, least)
    usual = CPU_ENCODER_BYTES if machine.device == "cpu" else int(machine.total_bytes * GPU_ENCODER_SHARE)
    return max(usual, least)


def _kv_budget(config: EngineConfig, machine: Machine, others_bytes: int) -> int:
    if machine.device == "cpu":
        if others_bytes > machine.free_bytes:
            raise CapacityError(
                f"Weights and workspace need {_size(others_bytes)}, {_size(machine.free_bytes)} of memory are free."
            )
        return min(CPU_KV_MAX_BYTES, int((machine.free_bytes - others_bytes) * CPU_KV_SHARE))
    usable = min(machine.free_bytes, int(machine.total_bytes * config.gpu_memory_utilization)) - GPU_RESERVE_BYTES
    if others_bytes > usable:
        raise CapacityError(
            f"Weights and workspace need {_size(others_bytes)}, {_size(usable)} of GPU memory are planned with. Lower "
            "max_num_batched_tokens or raise gpu_memory_utilization."
        )
    return usable - others_bytes


def _blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"

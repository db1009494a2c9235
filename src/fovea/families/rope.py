"""Rotary positions from a text config, in its old spelling (`rope_scaling`) and its new one (`rope_parameters`).

Types: default; linear (positions divided); llama3 (arXiv:2407.21783); longrope (arXiv:2402.13753), once called "su";
factors (each frequency divided by its own, as GGUF files have them).
"""

from __future__ import annotations

import math

from fovea.core.errors import UnsupportedModelError
from fovea.families.config_reader import Section
from fovea.families.parts import plain_rope
from fovea.families.spec import RopeRegime, RopeSpec

KINDS = ("default", "linear", "llama3", "longrope", "su", "factors")
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def rotary_width(config: Section, head_dim: int, *, partial: bool) -> int:
    """How many dimensions of a head are rotated. `partial`: it may be a part of them."""
    scaling = _scaling(config)
    if not partial:
        config.expect("partial_rotary_factor", 1.0)
        scaling.expect("partial_rotary_factor", 1.0)
    share = scaling.positive("partial_rotary_factor", config.positive("partial_rotary_factor", 1.0))
    width = int(head_dim * min(share, 2.0))
    if not 0 < width <= head_dim or width % 2:
        raise UnsupportedModelError(
            f"config.json: {width} of {head_dim} dimensions of a head are to be rotated; supported: an even number "
            "of them."
        )
    return width


def read_rope(config: Section, width: int, max_positions: int) -> RopeSpec:
    """For that many rotated dimensions. Raises UnsupportedModelError for a type or a key that is not implemented."""
    scaling = _scaling(config)
    config.expect("rope_interleaved", False)
    scaling.expect("type", *KINDS)
    scaling.expect("rope_type", *KINDS)
    kind = scaling.get(str, "rope_type", scaling.get(str, "type", "default"))
    theta = scaling.positive("rope_theta", config.positive("rope_theta", 10000.0))
    if kind == "linear":
        scaling.only(*_COMMON, "factor")
        return RopeSpec((RopeRegime(theta, (scaling.positive("factor"),) * (width // 2)),))
    if kind == "factors":
        scaling.only(*_COMMON, "factors")
        return RopeSpec((RopeRegime(theta, _own_factors(scaling, width)),))
    if kind == "llama3":
        return RopeSpec((RopeRegime(theta, _llama3_factors(config, scaling, theta, width, max_positions)),))
    if kind in ("longrope", "su"):
        return _longrope(config, scaling, theta, width, max_positions)
    scaling.only(*_COMMON)
    return plain_rope(theta)


def _scaling(config: Section) -> Section:
    old = config.section("rope_scaling")
    return old if old else config.section("rope_parameters")


def _llama3_factors(
    config: Section, scaling: Section, theta: float, width: int, max_positions: int
) -> tuple[float, ...]:
    """Long waves are divided by `factor`, short ones stay, and those between are interpolated."""
    scaling.only(*_COMMON, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor = scaling.positive("factor")
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    original = _original(config, scaling, max_positions)
    if low >= high:
        raise UnsupportedModelError(f"config.json: 'low_freq_factor' is {low}, not below 'high_freq_factor', {high}.")
    factors = []
    for i in range(0, width, 2):
        turns = original / (2 * math.pi * theta ** (i / width))  # that the wave makes in the original context
        share = min(1.0, max(0.0, (turns - low) / (high - low)))  # that is kept of its frequency
        factors.append(1.0 / ((1.0 - share) / factor + share))
    return tuple(factors)


def _own_factors(scaling: Section, width: int) -> tuple[float, ...]:
    factors = scaling.floats("factors")
    if len(factors) != width // 2 or not all(0.0 < factor < math.inf for factor in factors):
        raise UnsupportedModelError(f"config.json: rope factors must be {width // 2} numbers above 0.")
    return factors


def _longrope(config: Section, scaling: Section, theta: float, width: int, max_positions: int) -> RopeSpec:
    """Two sets of frequencies; the long one for all of a sequence that exceeds the original context."""
    own = ("short_factor", "long_factor", "factor", "attention_factor", "original_max_position_embeddings")
    scaling.only(*_COMMON, *own)
    original = _original(config, scaling, max_positions)
    factors = (scaling.floats("short_factor"), scaling.floats("long_factor"))
    if any(len(numbers) != width // 2 or min(numbers) <= 0.0 for numbers in factors):
        raise UnsupportedModelError(f"config.json: rope factors must hold {width // 2} numbers above 0 each.")
    ratio = scaling.positive("factor", max_positions / original)
    usual = 1.0 if ratio <= 1.0 or original == 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
    scale = scaling.positive("attention_factor", usual)
    return RopeSpec(tuple(RopeRegime(theta, numbers, scale) for numbers in factors), switch_tokens=original)


def _original(config: Section, scaling: Section, max_positions: int) -> int:
    """Tokens of the context before it was stretched; beside the scaling it counts more than inside."""
    key = "original_max_position_embeddings"
    return config.count(key, scaling.count(key, max_positions))

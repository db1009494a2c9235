"""Qwen2.5-VL: Qwen2-VL with another tower: RMSNorm, gated MLPs, and windows in most layers (arXiv:2502.13923)."""

from __future__ import annotations

from collections.abc import Sequence

from fovea.core.errors import UnsupportedModelError
from fovea.families.config_reader import Section
from fovea.families.qwen2_vl import Qwen2VL, tower_theta
from fovea.families.spec import TowerSpec


class Qwen2_5VL(Qwen2VL):
    architectures = ("Qwen2_5_VLForConditionalGeneration",)

    def read_tower(self, vision: Section, out_width: int) -> TowerSpec:
        """Defaults are those of transformers' Qwen2_5_VLVisionConfig."""
        vision.expect("hidden_act", "silu")
        vision.expect("out_hidden_size", out_width, default=3584)
        self.tokens_per_second = vision.positive("tokens_per_second", 4)
        num_layers, patch_px = vision.count("depth", 32), vision.count("patch_size", 14)
        window_px = vision.count("window_size", 112)
        window = window_px // vision.count("spatial_merge_size", 2) // patch_px
        if window < 1:
            raise UnsupportedModelError(
                f"config.json.vision_config: 'window_size' is {window_px}; it must hold a merged patch."
            )
        return TowerSpec(
            num_layers=num_layers,
            width=vision.count("hidden_size", 3584),
            num_heads=vision.count("num_heads", 16),
            mlp_width=vision.count("intermediate_size", 3420),
            activation="silu",
            norm_eps=1e-6,
            patch_px=patch_px,
            temporal_patch=vision.count("temporal_patch_size", 2),
            rope_theta=tower_theta(vision),
            norm="rms",
            gated=True,
            window=window,
            full_layers=_full_layers(vision, num_layers),
        )

    def intervals(self, steps_s: Sequence[float]) -> list[float]:
        """Positions count time in `tokens_per_second`; a still picture has one step."""
        return [self.tokens_per_second * step if step else 1.0 for step in steps_s]


def _full_layers(vision: Section, num_layers: int) -> tuple[int, ...]:
    """Those that the tower has; the published code, too, passes over numbers beyond its end."""
    said = vision.floats("fullatt_block_indexes") if "fullatt_block_indexes" in vision else (7, 15, 23, 31)
    if not all(index >= 0 and index % 1 == 0 for index in said):
        raise UnsupportedModelError(
            f"config.json.vision_config: 'fullatt_block_indexes' is {list(said)}; it must hold whole numbers from 0."
        )
    return tuple(i for i in range(num_layers) if i in said)

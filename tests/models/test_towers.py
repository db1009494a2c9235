"""Towers by their own: the rows of a tile are those of transformers' vision model, whoever adds the biases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from fovea.families.config_reader import Section
from fovea.families.parts import siglip_tower, siglip_unused, siglip_weights
from fovea.families.spec import TowerSpec
from fovea.models.vision import VisionTower

SIGLIP = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}


@pytest.mark.parametrize(("num_layers", "post_norm"), [(3, True), (3, False), (2, False)])
def test_siglip(num_layers: int, post_norm: bool) -> None:
    torch.manual_seed(0)
    theirs = SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    spec = siglip_tower(Section(SIGLIP, "config.json"), num_layers=num_layers, post_norm=post_norm)
    ours, slots = VisionTower(spec).eval(), siglip_weights("", spec)
    parameters = dict(ours.named_parameters())
    for name, tensor in theirs.state_dict().items():
        if name.removeprefix("vision_model.").startswith(siglip_unused("", spec, 3)):
            continue
        slot = slots.pop(name.removeprefix("vision_model."))
        target = parameters[slot.parameter.removeprefix("encoder.tower.")].data
        target = target if slot.rows is None else target[slot.row : slot.row + slot.rows]
        target.copy_(tensor.reshape(target.shape))
    assert not slots
    pictures = torch.randn(2, 3, 56, 56)
    patches = pictures.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    with torch.inference_mode():
        output = theirs(pictures, output_hidden_states=True)
        want = output.last_hidden_state if post_norm else output.hidden_states[num_layers]
        torch.testing.assert_close(ours.tiles(patches), want, atol=1e-4, rtol=0)


ROTATING = TowerSpec(3, 32, 2, 48, "quick_gelu", 1e-6, 14, temporal_patch=2, rope_theta=1e4)


@pytest.mark.parametrize(
    "spec",
    [
        ROTATING,
        replace(ROTATING, norm="rms", gated=True, activation="silu", post_norm=True),
        replace(ROTATING, pre_norm=True, feature_layers=(0, 2, 3), activation="gelu_tanh"),
    ],
)
def test_biases_may_stay_out_of_the_residual_stream(spec: TowerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on a GPU, where a product that is added to the stream has no pass for them."""
    torch.manual_seed(0)
    tower, lengths = VisionTower(spec).eval(), [6, 5]
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    patches, places = torch.randn(11, spec.patch_values), torch.randint(0, 4, (11, 2))
    with torch.inference_mode():
        want = tower.packed(patches, lengths, places, [])
        monkeypatch.setattr(VisionTower, "_owed", lambda self, _x: self.bias_sums())
        made = tower.packed(patches, lengths, places, [])
        assert not torch.equal(made, want), "nothing else was computed"
        torch.testing.assert_close(made, want, atol=1e-4, rtol=1e-4)

"""Towers by their own: the rows of a tile are those of transformers' vision model."""

from __future__ import annotations

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from fovea.families.config_reader import Section
from fovea.families.parts import siglip_tower, siglip_unused, siglip_weights
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

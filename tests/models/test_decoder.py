"""The decoder's rotary tables against transformers' own, and its logits head."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, Qwen2VLConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from fovea.families.registry import load_family
from fovea.families.spec import RopeRegime, RopeSpec
from fovea.models.decoder import Decoder, Rope
from tests.oracle import phi3v
from tests.parity.support import Checkpoints

CPU = torch.device("cpu")
PLACES = torch.tensor([0, 1, 2, 31, 32, 4095, 4096, 100_000])


def test_plain_positions_are_transformers_own() -> None:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={"rope_theta": 1e4, "rope_type": "default"}
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), PLACES[None])
    ours = Rope(RopeSpec((RopeRegime(1e4),)), 16, CPU)(PLACES[None], torch.zeros(len(PLACES), dtype=torch.int64))
    torch.testing.assert_close(ours[0], cos[0, :, :8], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[1], sin[0, :, :8], atol=1e-6, rtol=0)


def test_three_row_positions_are_transformers_own(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder("qwen2_vl")
    spec = load_family(folder).spec.decoder
    config = Qwen2VLConfig.from_pretrained(folder).get_text_config()
    places = torch.stack([PLACES, PLACES + 3, PLACES * 2])
    cos, sin = Qwen2VLRotaryEmbedding(config)(torch.zeros(1), places[:, None])
    ours = Rope(spec.rope, spec.head_dim, CPU)(places, torch.zeros(len(PLACES), dtype=torch.int64))
    # transformers keeps the three rows and mixes them by section when it applies them.
    half = spec.head_dim // 2
    assert spec.rope.sections is not None
    for theirs, own in ((cos, ours[0]), (sin, ours[1])):
        chunks = theirs[..., :half].split(spec.rope.sections, dim=-1) if theirs.ndim == 4 else None
        mixed = torch.cat([chunk[i, 0] for i, chunk in enumerate(chunks)], -1) if chunks else theirs[0, :, :half]
        torch.testing.assert_close(own, mixed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("regime", [0, 1])
def test_long_positions_are_transformers_own(checkpoints: Checkpoints, regime: int) -> None:
    folder = checkpoints.folder("phi3_v")
    spec, reference = load_family(folder).spec.decoder, phi3v.load(folder).decoder.model.rotary_emb
    last = 4095 if regime == 0 else 4096
    places = torch.tensor([0, 1, 77, last])
    cos, sin = reference(torch.zeros(1), places[None])
    ours = Rope(spec.rope, spec.head_dim, CPU)(places[None], torch.full((4,), regime))
    torch.testing.assert_close(ours[0], cos[0, :, :48], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], sin[0, :, :48], atol=1e-5, rtol=0)
    assert spec.rope.regime(last + 1) == regime


def test_a_tied_head_is_the_embedding(checkpoints: Checkpoints) -> None:
    spec = load_family(checkpoints.folder("qwen2_vl")).spec.decoder
    assert spec.tied_head
    decoder = Decoder(spec)
    assert not hasattr(decoder, "head")
    torch.nn.init.normal_(decoder.embed.weight)
    hidden = torch.randn(3, spec.hidden_size)
    torch.testing.assert_close(decoder.logits(hidden), hidden @ decoder.embed.weight.T)
    untied = Decoder(dataclasses.replace(spec, tied_head=False))
    assert untied.head.weight.shape == decoder.embed.weight.shape


def test_logits_are_float32_whatever_the_type_of_the_model(checkpoints: Checkpoints) -> None:
    spec = load_family(checkpoints.folder("qwen2_vl")).spec.decoder
    decoder = Decoder(spec).to(torch.bfloat16)
    assert decoder.logits(torch.zeros(1, spec.hidden_size, dtype=torch.bfloat16)).dtype == torch.float32

"""Packed linear layers are the plain ones in another layout."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fovea.models import packed
from fovea.models.packed import PackedLinear, can_pack, pack_linears

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 16, 48), (3, 80, 7), (8, 256, 1536), (65, 33, 1), (0, 16, 16)])
def test_a_packed_layer_equals_the_plain_one(dtype: torch.dtype, bias: bool, rows: int, width: int, out: int) -> None:
    if not can_pack(dtype):
        pytest.skip("this build of torch has no packed layers for this type")
    torch.manual_seed(0)
    linear = nn.Linear(width, out, bias=bias, dtype=dtype)
    x = torch.randn(rows, width, dtype=dtype)
    with torch.inference_mode():
        wanted = linear(x)
        got = PackedLinear(linear)(x)
    torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_packing_takes_every_linear_and_frees_the_plain_weights() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8, bias=False)))
    x = torch.randn(2, 16)
    wanted = model(x).detach()
    packed_layers = pack_linears(model, torch.float32)
    assert packed_layers in (0, 2)
    assert sum(p.numel() for p in model.parameters()) == (48 if packed_layers else 48 + 256 + 128)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)


def test_where_torch_lacks_the_operations_layers_stay_plain_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed, "can_pack", lambda dtype: False)
    monkeypatch.setattr(logging.getLogger("fovea"), "propagate", True)
    model = nn.Sequential(nn.Linear(4, 4))
    with caplog.at_level("INFO", logger="fovea"):
        assert pack_linears(model, torch.float16) == 0
    assert isinstance(model[0], nn.Linear)
    assert "plain ones are used" in caplog.text

"""A whole model: picture encoder, if it takes pictures, and decoder, built from a ModelSpec."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fovea.core.types import MediaItem
from fovea.families.spec import ModelSpec
from fovea.models.decoder import Decoder, Rope
from fovea.models.encoders import ENCODERS
from fovea.models.pixels import make_canvases


class VLM(nn.Module):
    """Parameters come from `models.weights`; nothing here allocates state for requests."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.decoder = Decoder(spec.decoder)
        if spec.takes_pictures:
            self.encoder = ENCODERS[spec.encoder](spec)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed.weight.dtype

    def make_rope(self) -> Rope:
        decoder = self.spec.decoder
        return Rope(decoder.rope, decoder.rotary_dim or decoder.head_dim, self.device)

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Rows [num_tokens, hidden] for each picture, all pictures in one pass of the tower.

        The host waits for nothing on the device.
        """
        canvases = make_canvases(items, self.device)
        rows: list[Tensor] = self.encoder(canvases, [item.grid for item in items])
        for item, picture_rows in zip(items, rows, strict=True):
            assert len(picture_rows) == item.num_tokens, "planned and encoded token counts differ"
        return rows

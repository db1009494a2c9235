"""A whole model: picture encoder, if it takes pictures, and decoder, built from a ModelSpec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fovea.core.types import ROW, MediaItem
from fovea.families.spec import ModelPath, ModelSpec
from fovea.models.decoder import Decoder, Rope
from fovea.models.encoders import ENCODERS
from fovea.models.pixels import make_canvases, upload

PATCHES_AT_ONCE = 16384


class VLM(nn.Module):
    """Parameters come from `models.weights`; nothing here allocates state for requests."""

    path: ClassVar[ModelPath] = "fused"

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patches_at_once = PATCHES_AT_ONCE  # of a video; whoever plans memory may set another
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
        """Rows [num_tokens, hidden] for each picture, all pictures in one pass of the tower; where a token of text
        stands between them, its embedding.

        The host waits for nothing on the device.
        """
        canvases = make_canvases(items, self.device)
        rows: list[Tensor]
        if any(canvas.dim() == 4 for canvas in canvases):
            rows = self._encode_with_videos(canvases, items)
        else:
            rows = self.encoder(canvases, [item.grid for item in items])
        for item, picture_rows in zip(items, rows, strict=True):
            num_rows = item.num_tokens if item.ids is None else item.ids.count(ROW)
            assert len(picture_rows) == num_rows, "planned and encoded token counts differ"
        return self._with_text(items, rows)

    def _with_text(self, items: Sequence[MediaItem], rows: list[Tensor]) -> list[Tensor]:
        mixed = [i for i, item in enumerate(items) if item.ids is not None]
        if not mixed:
            return rows
        spans = [np.asarray(items[i].ids, np.int32) for i in mixed]
        (ids,) = upload([np.concatenate(spans)], self.device)
        is_row = (ids == ROW)[:, None]
        number = (is_row.flatten().long().cumsum(0) - 1).clamp(min=0)
        joined = torch.cat([rows[i] for i in mixed])
        text = self.decoder.embed(ids.clamp(min=0))
        if joined.shape[1] > text.shape[1]:  # deepstack adds nothing to text
            text = F.pad(text, (0, joined.shape[1] - text.shape[1]))
        whole = torch.where(is_row, joined[number], text)
        filled = list(rows)
        for i, span in zip(mixed, whole.split([len(span) for span in spans]), strict=True):
            filled[i] = span
        return filled

    def _encode_with_videos(self, canvases: Sequence[Tensor], items: Sequence[MediaItem]) -> list[Tensor]:
        made: dict[int, Tensor] = {}
        pictures = [i for i, canvas in enumerate(canvases) if canvas.dim() == 3]
        if pictures:
            rows = self.encoder([canvases[i] for i in pictures], [items[i].grid for i in pictures])
            made |= zip(pictures, rows, strict=True)
        for i, canvas in enumerate(canvases):
            if canvas.dim() == 4:
                made[i] = self._encode_steps(canvas, items[i])
        return [made[i] for i in range(len(items))]

    def _encode_steps(self, video: Tensor, item: MediaItem) -> Tensor:
        """A video in passes of at most `patches_at_once`: no tower looks from one step of its time to another."""
        steps, rows, columns = item.grid
        slots = len(video) // steps
        at_once = max(1, self.patches_at_once * steps // item.num_patches)
        parts: list[Tensor] = []
        for start in range(0, steps, at_once):
            count = min(at_once, steps - start)
            parts.append(self.encoder.video(video[start * slots : (start + count) * slots], (count, rows, columns)))
        return torch.cat([*parts, *self.encoder.behind_video()])

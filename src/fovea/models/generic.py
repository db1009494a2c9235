"""The generic path: transformers' modules, with attention and its keys and values in Fovea's pages.

A step packs the new tokens of many sequences into one row, as it does for Fovea's own decoder. The attention modules of
transformers call a registered function; ours writes keys and values to the pages and attends over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fovea import kernels as ops
from fovea.core.errors import RequestFailedError, UnsupportedModelError
from fovea.core.types import ROW, MediaItem
from fovea.families.spec import ModelPath, ModelSpec
from fovea.kernels import kv_pages
from fovea.kernels.batch import PLAIN, AttentionBatch, AttentionRule, LastTokens
from fovea.kernels.kv_pages import KVPages
from fovea.models.bridged import BridgedModel, to_model

ATTENTION = "fovea"
HOLDER = "fovea_step"  # the attribute of an attention module that leads to its step
TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class _Step:
    """What attention needs of the step that is running; the modules of transformers have no way to hand it on."""

    def __init__(self) -> None:
        self.pages: list[KVPages] = []
        self.batch: AttentionBatch | None = None


class GenericModel(BridgedModel):
    """What Runner asks of a VLM, from a model of transformers whose attention can be replaced.

    Raises UnsupportedModelError for a decoder that does not fit the pages.
    """

    path: ClassVar[ModelPath] = "generic"

    def __init__(self, module: Any, spec: ModelSpec, image_token_id: int) -> None:
        super().__init__(module, spec)
        self.decoder = GenericDecoder(module, spec)
        self._image_token_id = image_token_id
        self._features = module.model if hasattr(getattr(module, "model", None), "get_image_features") else module

    def make_rope(self) -> NoRope:
        return NoRope()

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """Rows [num_tokens, hidden] for each item: its features, and the embeddings of the text between them."""
        return [self._encode(item) for item in items]

    def _encode(self, item: MediaItem) -> Tensor:
        assert item.arrays is not None
        assert item.ids is not None
        inputs = to_model({k: v for k, v in item.arrays.items() if k not in TEXT_INPUTS}, self)
        features = _rows(self._features.get_image_features(**inputs, return_dict=True))
        ids = torch.tensor(item.ids, device=self.device)
        is_row = ids == ROW
        rows: Tensor = self.decoder.embed(ids.clamp(min=0))
        if len(features) != int(is_row.sum()):
            raise RequestFailedError(f"The pictures make {len(features)} rows for {int(is_row.sum())} places.")
        rows[is_row] = features.to(rows)
        return rows


class GenericDecoder(nn.Module):
    def __init__(self, module: Any, spec: ModelSpec) -> None:
        super().__init__()
        self._decoder = module.get_decoder()
        self._embed, self._head = module.get_input_embeddings(), module.get_output_embeddings()
        self._step = _Step()
        self._spec = spec.decoder
        text = module.config.get_text_config(decoder=True)
        self._softcap = getattr(text, "final_logit_softcapping", None)
        self._scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        _take_attention(self._decoder, self._step)

    def embed(self, ids: Tensor) -> Tensor:
        """[T] to [T, hidden]. What is no token of the vocabulary stands where a picture's row will be."""
        embedded: Tensor = self._embed(torch.where(ids < self._embed.num_embeddings, ids, 0))
        return embedded

    def forward(
        self,
        x: Tensor,
        pages: list[KVPages],
        batch: AttentionBatch,
        deepstack: None = None,
        last: LastTokens | None = None,
    ) -> Tensor:
        """Embeddings [T, hidden] to final hidden states [T, hidden], or those of the last tokens; writes the pages."""
        assert deepstack is None
        assert batch.positions is not None
        self._step.pages, self._step.batch = pages, batch
        positions = batch.positions if self._spec.rope.sections is None else batch.positions[:, None]
        found = self._decoder(inputs_embeds=x[None], position_ids=positions, use_cache=False, return_dict=True)
        hidden: Tensor = found.last_hidden_state[0]
        return hidden if last is None else hidden[last.rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocabulary] in float32."""
        return self.finished(self.raw_logits(hidden))

    def raw_logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)
        return logits

    def finished(self, raw: Tensor) -> Tensor:
        logits = raw.float() * self._scale
        return logits if self._softcap is None else self._softcap * torch.tanh(logits / self._softcap)


class NoRope:
    """In the place of a Rope: transformers turns queries and keys by positions itself."""

    def __call__(self, positions: Tensor, regimes: Tensor) -> tuple[Tensor, Tensor]:
        nothing = positions.new_empty((positions.shape[1], 0), dtype=torch.float32)
        return nothing, nothing


def _take_attention(decoder: Any, step: _Step) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    for module in decoder.modules():
        if getattr(module, "config", None) is not None:
            module.config._attn_implementation = ATTENTION
        if getattr(module, "layer_idx", None) is not None:
            vars(module)[HOLDER] = step


def _no_mask(*args: object, **options: object) -> None:
    """Our attention knows which keys a token sees."""


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: object = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, N, T, D], key and value [1, G, T, D] to [1, T, N, D]."""
    step: _Step = getattr(module, HOLDER)
    keys, values = step.pages[module.layer_idx]
    batch = step.batch
    assert batch is not None
    if key.shape[1::2] != keys.shape[2:] or value.shape[1::2] != values.shape[2:] or s_aux is not None:
        raise UnsupportedModelError(f"The attention of {type(module).__name__} does not fit Fovea's pages.")
    kv_pages.store(keys, batch.slots, key[0].transpose(0, 1))
    kv_pages.store(values, batch.slots, value[0].transpose(0, 1))
    is_usual = scaling is None or math.isclose(scaling, query.shape[-1] ** -0.5)
    rule = AttentionRule(None if is_usual else scaling, sliding_window, softcap)
    q = query[0].transpose(0, 1).contiguous()
    return ops.paged_attention(q, keys, values, batch, PLAIN if rule == PLAIN else rule)[None], None


def _rows(found: Any) -> Tensor:
    """What get_image_features gives, in any of its shapes, as rows [R, hidden]."""
    features = getattr(found, "pooler_output", found)
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])

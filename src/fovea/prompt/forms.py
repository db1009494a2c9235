"""What a user may hand to `generate`, turned into one form: text or ids, and a list of media.

No media are opened here; values are only told apart by their kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fovea.core.errors import EmbeddingsError, MediaSourceError, PromptError, nearest
from fovea.prompt.media_parts import MAX_UUID_CHARS as MAX_UUID_CHARS
from fovea.prompt.media_parts import MediaInput as MediaInput
from fovea.prompt.media_parts import is_unicode as is_unicode
from fovea.prompt.pieces import Piece
from fovea.prompt.video_parts import parse_videos

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT_KEYS = (
    "prompt",
    "prompt_token_ids",
    "multi_modal_data",
    "multi_modal_uuids",
    "mm_processor_kwargs",
    "cache_salt",
)
MAX_SALT_CHARS = 128
MAX_GRID_SIDE = 100_000  # far above any picture; keeps products of three exact
MEDIA_KINDS = ("image", "video")
EMBEDS_KEYS = {"image_embeds", "image_grid_thw"}


@dataclass(frozen=True, slots=True)
class PromptForm:
    """A request before tokenisation. Exactly one of `pieces` and `token_ids` is set."""

    pieces: tuple[Piece, ...] | None
    token_ids: tuple[int, ...] | None = None
    media: tuple[MediaInput, ...] = ()
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    salt: str = ""
    add_special_tokens: bool = True  # the model's BOS, where the text does not bring it

    @property
    def text(self) -> str | None:
        return None if self.pieces is None else "".join(piece.text for piece in self.pieces)


def parse_prompt(prompt: object) -> PromptForm:
    """str, list of ids, or a dict with the keys in PROMPT_KEYS.

    Raises PromptError or MediaError for anything else, naming what was found and what is expected.
    """
    if isinstance(prompt, str):
        return PromptForm((Piece(prompt, True),))
    if isinstance(prompt, (list, tuple)):
        return PromptForm(None, _token_ids(prompt))
    if not isinstance(prompt, Mapping):
        raise PromptError(
            f"A prompt is text, a list of token ids or a dict, not {type(prompt).__name__}.",
            code="invalid_type",
            param="prompt",
        )
    for key in prompt:
        if key not in PROMPT_KEYS:
            raise PromptError(
                f"A prompt has no key {key!r}; known: {', '.join(PROMPT_KEYS)}.{nearest(str(key), PROMPT_KEYS)}",
                code="unsupported_value",
            )
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if (text is None) == (ids is None):
        raise PromptError(
            "A prompt dict needs either 'prompt' (text) or 'prompt_token_ids'.",
            code="missing_required_parameter" if text is None else "unsupported_combination",
            param="prompt",
        )
    if text is not None and not isinstance(text, str):
        raise PromptError(f"'prompt' must be text, not {type(text).__name__}.", code="invalid_type", param="prompt")
    return PromptForm(
        pieces=None if text is None else (Piece(text, True),),
        token_ids=None if ids is None else _token_ids(ids),
        media=_with_uuids(parse_media(prompt.get("multi_modal_data")), prompt.get("multi_modal_uuids")),
        processor_kwargs=checked_mapping(prompt.get("mm_processor_kwargs"), "mm_processor_kwargs"),
        salt=checked_text(prompt.get("cache_salt"), "cache_salt", MAX_SALT_CHARS),
    )


def parse_media(data: object) -> tuple[MediaInput, ...]:
    """The value of `multi_modal_data`: {"image": one or several pictures, or embeddings, "video": one or several}.

    Pictures come before videos here; in the prompt each stands at the next place of its kind.
    """
    values = checked_mapping(data, "multi_modal_data")
    for kind in values:
        if kind not in MEDIA_KINDS:
            raise MediaSourceError(
                f"multi_modal_data has {kind!r}; supported are 'image' and 'video'.",
                code="unsupported_value",
                param="multi_modal_data",
            )
    return (*_parse_pictures(values.get("image")), *parse_videos(values.get("video")))


def _parse_pictures(value: object) -> tuple[MediaInput, ...]:
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return _gridded_embeds(value)
    if _is_float_array(value):
        return _stacked_embeds(value)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(_media_input(item) for item in items)


def embeds_array(value: object, where: str) -> NDArray[np.float32]:
    """Embeddings as float32, copied. Raises EmbeddingsError if they are not numbers."""
    try:
        detach = getattr(value, "detach", None)
        if detach is not None:
            value = detach().float().cpu().numpy()
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is refused as such
            return np.array(value, dtype=np.float32, copy=True)
    except Exception:  # foreign code: tensors without plain data (sparse, meta), objects that are no numbers
        raise EmbeddingsError(f"{where}: a plain array of numbers is expected.") from None


def _media_input(item: object) -> MediaInput:
    if not _is_float_array(item):
        return MediaInput("picture", item)
    array = embeds_array(item, "An image embedding")
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2:
        raise EmbeddingsError(f"An image embedding has shape {list(array.shape)}; expected [tokens, hidden].")
    return MediaInput("embeds", array)


def _stacked_embeds(value: object) -> tuple[MediaInput, ...]:
    array = embeds_array(value, "Image embeddings")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or not array.size:
        raise EmbeddingsError(f"Image embeddings have shape {list(array.shape)}; expected [pictures, tokens, hidden].")
    return tuple(MediaInput("embeds", rows) for rows in array)


def _gridded_embeds(value: Mapping[str, Any]) -> tuple[MediaInput, ...]:
    """Qwen2-VL's form: rows of all pictures behind one another [tokens, hidden] and a grid for each [pictures, 3]."""
    if set(value) != EMBEDS_KEYS:
        given = ", ".join(sorted(map(repr, value)))
        raise EmbeddingsError(f"Image embeddings as a dict need the keys {sorted(EMBEDS_KEYS)}, not {given}.")
    rows = embeds_array(value["image_embeds"], "image_embeds")
    grids = _grids(embeds_array(value["image_grid_thw"], "image_grid_thw"))
    if rows.ndim == 3 and len(rows) == len(grids) == 1:
        rows = rows[0]
    if rows.ndim != 2:
        raise EmbeddingsError(f"image_embeds has shape {list(rows.shape)}; expected [tokens, hidden].")
    patches = grids.prod(axis=1)
    total = int(patches.sum())
    if not 1 <= len(rows) <= total or total % len(rows):
        raise EmbeddingsError(f"image_grid_thw means {total} patches; {len(rows)} embeddings do not fit.")
    ends = np.cumsum(patches * len(rows) // total)
    parts = np.split(rows, ends[:-1])
    triples = [(int(t), int(h), int(w)) for t, h, w in grids]
    return tuple(MediaInput("embeds", part, grid=grid) for part, grid in zip(parts, triples, strict=True))


def _grids(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """[pictures, 3], or [3] for one picture."""
    grids = values[None] if values.ndim == 1 else values
    inside = bool(((grids >= 1) & (grids <= MAX_GRID_SIDE) & (grids == np.floor(grids))).all())
    if grids.ndim != 2 or grids.shape[1] != 3 or not len(grids) or not inside:
        raise EmbeddingsError(
            f"image_grid_thw must be [pictures, 3] whole numbers from 1 to {MAX_GRID_SIDE}; its shape is "
            f"{list(values.shape)}."
        )
    return grids.astype(np.int64)


def _is_float_array(value: object) -> bool:
    """A numpy array or torch tensor of floats, told without importing torch."""
    dtype = str(getattr(value, "dtype", ""))
    return hasattr(value, "shape") and ("float" in dtype or "double" in dtype or "half" in dtype)


def _token_ids(values: Sequence[object]) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise PromptError("Token ids must be a list of whole numbers.", code="invalid_type", param="prompt")
    return tuple(v for v in values if isinstance(v, int))


def _with_uuids(media: tuple[MediaInput, ...], uuids: object) -> tuple[MediaInput, ...]:
    if uuids is None:
        return media
    said = checked_mapping(uuids, "multi_modal_uuids")
    listed: list[object] = []
    for kind in MEDIA_KINDS:
        values, count = said.get(kind), sum((one.video is not None) == (kind == "video") for one in media)
        of_kind = list(values) if isinstance(values, (list, tuple)) else [values] * (values is not None or count > 0)
        if len(of_kind) != count:
            raise MediaSourceError(
                f"multi_modal_uuids has {len(of_kind)} entries for {count} {kind}s.",
                code="invalid_value",
                param="multi_modal_uuids",
            )
        listed += of_kind
    names = [checked_text(name, "multi_modal_uuids", MAX_UUID_CHARS) for name in listed]
    return tuple(replace(one, uuid=name) for one, name in zip(media, names, strict=True))


def checked_mapping(value: object, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PromptError(f"{name} must be a dict, not {type(value).__name__}.", code="invalid_type", param=name)
    return value


def checked_text(value: object, name: str, limit: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        code = "invalid_type"
    elif len(value) > limit:
        code = "string_too_long"
    elif not is_unicode(value):
        code = "invalid_value"
    else:
        return value
    raise PromptError(f"{name} must be valid text of at most {limit} characters.", code=code, param=name)

"""A PromptForm to token ids with the places of its pictures, then to spans once their token counts are known.

The two halves are apart so that a request can be refused for its number of pictures before one is opened, and for its
length before one is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from fovea.core.errors import PlaceholderError, PromptError
from fovea.core.types import ROW, MediaSpan
from fovea.families.base import Family, Mark
from fovea.prompt.forms import MediaInput, PromptForm
from fovea.prompt.pieces import Piece
from fovea.prompt.tokenizer import Tokenizer

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class SlottedPrompt:
    """Token ids in which one placeholder token at each of `slots` stands for a whole picture or video.

    `media` are those of the form in the order of their slots. `is_expanded`: the ids hold all tokens of every picture
    already (ids that a processor made), to be checked by `expand`.
    """

    token_ids: tuple[int, ...]
    slots: tuple[int, ...]
    is_expanded: bool = False
    media: tuple[MediaInput, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class PictureRun:
    """The tokens of one picture: `length` of them in its span, and text `before` and `after` it.

    `shown`: the span's tokens, ROW where the placeholder stands; None: nothing else. `inside`: see MediaItem.ids.
    """

    length: int
    shown: tuple[int, ...] | None = None
    inside: tuple[int, ...] | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def token_ids(self, placeholder_id: int) -> list[int]:
        span = [placeholder_id] * self.length
        if self.shown is not None:
            span = [placeholder_id if token == ROW else token for token in self.shown]
        return [*self.before, *span, *self.after]


def tokenize(form: PromptForm, family: Family, tokenizer: Tokenizer) -> SlottedPrompt:
    """Raises PlaceholderError if the prompt does not have one place for each picture, PromptError for bad ids.

    A model of text alone refuses pictures with MediaError.
    """
    family.check_media(len(form.media), sum(one.video is not None for one in form.media))
    placeholder_id, video_id = placeholder_token(family, tokenizer), video_token(family, tokenizer)
    if form.token_ids is not None:
        ids = _checked(form.token_ids, family)
        prompt = _slotted(ids, placeholder_id, video_id)
    elif family.image_tag is None:
        prompt = _tokenize_whole(_marked_up(form, family), family, tokenizer, placeholder_id, video_id)
    else:
        prompt = _tokenize_numbered(form, family.image_tag, tokenizer, placeholder_id)
    if not prompt.token_ids:
        raise PromptError("The prompt is empty.", code="invalid_value")
    if form.token_ids is not None and len(prompt.slots) > len(form.media) > 0:
        are_videos = {one.video is not None for one in form.media}
        if {prompt.token_ids[slot] == video_id for slot in prompt.slots} == are_videos and len(are_videos) == 1:
            return replace(prompt, is_expanded=True, media=form.media)
    if family.video_frame is not None:
        prompt = _bare_videos(prompt, [tokenizer.token_id(token) for token in family.video_frame], video_id)
    return replace(prompt, media=_in_order(prompt, form.media, family, video_id))


def _bare_videos(prompt: SlottedPrompt, frame: Sequence[int | None], video_id: int) -> SlottedPrompt:
    """Without the tokens around a video's place that stand around each step of its layout."""
    ids, slots = list[int](), list[int]()
    skipped = {
        place
        for slot in prompt.slots
        if prompt.token_ids[slot] == video_id
        and 0 < slot < len(prompt.token_ids) - 1
        and [prompt.token_ids[slot - 1], prompt.token_ids[slot + 1]] == list(frame)
        for place in (slot - 1, slot + 1)
    }
    at_slots = set(prompt.slots)
    for place, token in enumerate(prompt.token_ids):
        if place in skipped:
            continue
        if place in at_slots:
            slots.append(len(ids))
        ids.append(token)
    return replace(prompt, token_ids=tuple(ids), slots=tuple(slots))


def _in_order(
    prompt: SlottedPrompt, media: Sequence[MediaInput], family: Family, video_id: int
) -> tuple[MediaInput, ...]:
    """Each place with the next medium of its kind."""
    pictures = [one for one in media if one.video is None]
    videos = [one for one in media if one.video is not None]
    are_videos = [prompt.token_ids[slot] == video_id for slot in prompt.slots]
    num_videos = sum(are_videos)
    if len(are_videos) - num_videos != len(pictures):
        raise PlaceholderError(
            f"The prompt has {len(are_videos) - num_videos} places for pictures ({family.image_text(1).strip()!r}) and "
            f"{len(pictures)} were given."
        )
    if num_videos != len(videos):
        raise PlaceholderError(
            f"The prompt has {num_videos} places for videos ({family.video_text(1).strip()!r}) and {len(videos)} were "
            "given."
        )
    of_kind = {True: iter(videos), False: iter(pictures)}
    return tuple(next(of_kind[is_video]) for is_video in are_videos)


def picture_run(
    family: Family,
    tokenizer: Tokenizer,
    grid: tuple[int, int, int],
    num_rows: int,
    times_s: Sequence[float] | None = None,
) -> PictureRun:
    """The tokens of a picture with this grid and so many rows of embeddings, or of a video, which has times."""
    layout = family.image_layout(grid, num_rows) if times_s is None else family.video_layout(grid, num_rows, times_s)
    if layout is None:
        return PictureRun(num_rows)
    shown: list[int] = []
    inside: list[int] = []
    known: dict[str, list[int]] = {}
    for kind, parts in groupby(layout, type):
        if kind is int:
            ids = texts = [ROW] * sum(part for part in parts if isinstance(part, int))
        elif kind is Mark:
            ids = [_mark_id(part, family, tokenizer) for part in parts if isinstance(part, Mark)]
            texts = [ROW] * len(ids)
        else:
            text = "".join(part for part in parts if isinstance(part, str))
            if text not in known:
                known[text] = tokenizer.encode_pieces([(text, True)])
            ids = texts = known[text]
        shown += ids
        inside += texts
    assert inside.count(ROW) == num_rows, "a picture's layout has another number of rows than its plan"
    first, end = inside.index(ROW), len(inside) - inside[::-1].index(ROW)
    return PictureRun(
        end - first,
        shown=_unless_plain(shown[first:end]),
        inside=_unless_plain(inside[first:end]),
        before=tuple(shown[:first]),
        after=tuple(shown[end:]),
    )


def _unless_plain(ids: list[int]) -> tuple[int, ...] | None:
    return None if ids.count(ROW) == len(ids) else tuple(ids)


def _mark_id(mark: Mark, family: Family, tokenizer: Tokenizer) -> int:
    token_id = tokenizer.token_id(mark.token)
    assert token_id is not None, f"{mark.token} is none of {family.name}.layout_tokens"
    return token_id


def row_runs(span: MediaSpan, inside: Sequence[int]) -> list[MediaSpan]:
    """The stretches of rows of a span that has text between them."""
    runs, at = [], span.start
    for is_row, tokens in groupby(inside, lambda token: token == ROW):
        length = len(list(tokens))
        if is_row:
            runs.append(MediaSpan(at, length))
        at += length
    return runs


def expand(prompt: SlottedPrompt, runs: Sequence[PictureRun]) -> tuple[tuple[int, ...], tuple[MediaSpan, ...]]:
    """Put each picture's tokens where its placeholder stands.

    Raises PlaceholderError if a prompt that is expanded already has other tokens than these.
    """
    if prompt.is_expanded:
        return prompt.token_ids, _found(prompt, runs)
    ids: list[int] = []
    spans = []
    cursor = 0
    for slot, run in zip(prompt.slots, runs, strict=True):
        ids.extend(prompt.token_ids[cursor:slot])
        spans.append(MediaSpan(len(ids) + len(run.before), run.length))
        ids.extend(run.token_ids(prompt.token_ids[slot]))
        cursor = slot + 1
    ids.extend(prompt.token_ids[cursor:])
    return tuple(ids), tuple(spans)


def _found(prompt: SlottedPrompt, runs: Sequence[PictureRun]) -> tuple[MediaSpan, ...]:
    """Where the pictures' tokens are in an expanded prompt; every placeholder must belong to one."""
    placeholder_id = prompt.token_ids[prompt.slots[0]]
    spans = []
    cursor = num_slots = 0
    for number, run in enumerate(runs, 1):
        ids = run.token_ids(placeholder_id)
        first = next((slot for slot in prompt.slots[num_slots:] if slot >= cursor), len(prompt.token_ids))
        start = first - ids.index(placeholder_id)
        if start < cursor or prompt.token_ids[start : start + len(ids)] != tuple(ids):
            raise PlaceholderError(
                f"The prompt has {len(prompt.slots)} places for pictures and {len(runs)} were given. Were it the "
                f"expanded form, picture {number} would have {len(ids)} tokens in it, which are not there."
            )
        spans.append(MediaSpan(start + len(run.before), run.length))
        cursor, num_slots = start + len(ids), num_slots + ids.count(placeholder_id)
    if num_slots != len(prompt.slots):
        raise PlaceholderError(
            f"The prompt has {len(prompt.slots)} tokens for pictures, of which the {len(runs)} given take {num_slots}."
        )
    return tuple(spans)


def placeholder_token(family: Family, tokenizer: Tokenizer) -> int:
    """NO_TOKEN where the model takes no pictures, or its own processor finds their places."""
    if not family.spec.takes_pictures or family.path != "fused":
        return NO_TOKEN
    token_id = tokenizer.token_id(family.placeholder)
    for text in (family.placeholder, *family.layout_tokens):
        if tokenizer.token_id(text) is None:
            raise PromptError(f"The tokenizer has no {text!r}; it is not one for {family.name}.")
    assert token_id is not None
    return token_id


def video_token(family: Family, tokenizer: Tokenizer) -> int:
    """NO_TOKEN where the model takes no videos, or its tokenizer knows none."""
    if family.video_placeholder is None or not family.spec.takes_pictures:
        return NO_TOKEN
    token_id = tokenizer.token_id(family.video_placeholder)
    return NO_TOKEN if token_id is None else token_id


def _checked(ids: tuple[int, ...], family: Family) -> tuple[int, ...]:
    vocab_size = family.spec.decoder.vocab_size
    wrong = next((t for t in ids if not 0 <= t < vocab_size), None)
    if wrong is not None:
        raise PromptError(
            f"Token id {wrong} is outside the vocabulary; permitted: 0 to {vocab_size - 1}.",
            code="below_min_value" if wrong < 0 else "above_max_value",
            param="prompt",
        )
    return ids


def _slotted(ids: Sequence[int], placeholder_id: int, video_id: int) -> SlottedPrompt:
    if placeholder_id not in ids and video_id not in ids:
        return SlottedPrompt(tuple(ids), ())
    return SlottedPrompt(tuple(ids), tuple(i for i, t in enumerate(ids) if t in (placeholder_id, video_id)))


def _marked_up(form: PromptForm, family: Family) -> PromptForm:
    texts = family.markup([(piece.text, piece.trusted) for piece in form.pieces or ()])
    pieces = tuple(Piece(text, trusted) for text, trusted in texts)
    return replace(form, pieces=pieces, add_special_tokens=form.add_special_tokens and family.adds_bos)


def _tokenize_whole(
    form: PromptForm, family: Family, tokenizer: Tokenizer, placeholder_id: int, video_id: int
) -> SlottedPrompt:
    pieces: Sequence[Piece] = form.pieces or ()
    if family.text_placeholder is not None:
        spelled, token = family.text_placeholder, family.placeholder
        pieces = [Piece(p.text.replace(spelled, token), True) if p.trusted else p for p in pieces]
    return _slotted(_encode(form, pieces, tokenizer), placeholder_id, video_id)


def _tokenize_numbered(
    form: PromptForm, tag: re.Pattern[str], tokenizer: Tokenizer, placeholder_id: int
) -> SlottedPrompt:
    """Text between pictures is tokenised on its own, each with its own BOS, as Phi-3-vision's published code does."""
    segments: list[list[Piece]] = [[]]
    numbers = []
    for piece in form.pieces or ():
        texts = tag.split(piece.text) if piece.trusted else [piece.text]
        segments[-1].append(Piece(texts[0], piece.trusted))
        for number, text in zip(texts[1::2], texts[2::2], strict=True):
            numbers.append(int(number))
            segments.append([Piece(text, piece.trusted)])
    if numbers != list(range(1, len(numbers) + 1)):
        raise PlaceholderError(f"Picture tags must be numbered 1, 2, 3, ... in order; the prompt has {numbers[:8]}.")
    ids = _encode(form, segments[0], tokenizer)
    slots = []
    for segment in segments[1:]:
        slots.append(len(ids))
        ids += [placeholder_id, *_encode(form, segment, tokenizer)]
    return SlottedPrompt(tuple(ids), tuple(slots))


def _encode(form: PromptForm, pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[int]:
    """With the model's BOS, unless the text brings it (a chat template may) or the request wants none."""
    first = next((piece for piece in pieces if piece.text), Piece("", True))
    brings_bos = first.trusted and tokenizer.bos_token is not None and first.text.startswith(tokenizer.bos_token)
    return tokenizer.encode_pieces(pieces, add_special_tokens=form.add_special_tokens and not brings_bos)

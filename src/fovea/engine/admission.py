"""Whether a request could ever run here, judged before it is queued."""

from __future__ import annotations

from fovea.core.errors import MediaLimitError, PromptError, PromptTooLongError, RequestFailedError
from fovea.core.types import ROW, EngineRequest, MediaItem, MediaSpan
from fovea.engine.memory import MemoryPlan
from fovea.engine.scheduler import Scheduler


def check_request(request: EngineRequest, plan: MemoryPlan, vocab_size: int, scheduler: Scheduler) -> None:
    """Raises RequestError saying which limit and which value."""
    if not 0 <= min(request.token_ids) <= max(request.token_ids) < vocab_size:
        raise PromptError(f"The prompt has a token id outside the vocabulary of {vocab_size}.")
    if len(request.token_ids) >= plan.max_model_len:
        raise PromptTooLongError(
            f"The prompt has {len(request.token_ids)} tokens; max_model_len is {plan.max_model_len}, answer "
            "included. Shorten it, lower the pictures' pixels, or raise max_model_len."
        )
    check_open_spans(request, scheduler)
    capacity_bytes = scheduler.encoder_cache.capacity_bytes
    for i, (span, item) in enumerate(zip(request.spans, request.media, strict=True)):
        _check_text(request, span, item)
        needed_bytes = item.num_tokens * scheduler.budgets.embedding_bytes
        if item.embeds is None and needed_bytes > capacity_bytes:
            raise MediaLimitError(
                f"Picture {i + 1} makes {needed_bytes} bytes of embeddings; encoder_cache_bytes is "
                f"{capacity_bytes}. Lower its pixels or raise encoder_cache_bytes."
            )
        is_video = item.canvas is not None and item.canvas.ndim == 4  # encoded a few steps of its time at once
        num_patches = item.num_patches // item.grid[0] if is_video else item.num_patches
        if num_patches > plan.max_picture_patches:
            raise MediaLimitError(
                f"Picture {i + 1} has {num_patches} patches; memory is planned for "
                f"{plan.max_picture_patches}. Lower its pixels or raise max_num_batched_patches."
            )


def _check_text(request: EngineRequest, span: MediaSpan, item: MediaItem) -> None:
    """The text between a picture's rows is embedded apart from the prompt's, so it has to be the prompt's."""
    if item.ids is None:
        return
    there = request.token_ids[span.start : span.end]
    if len(item.ids) != len(there) or any(a not in (ROW, b) for a, b in zip(item.ids, there, strict=True)):
        raise RequestFailedError("A picture's tokens are not those of the prompt.")


def check_open_spans(request: EngineRequest, scheduler: Scheduler) -> None:
    """What sees each other is computed in one step: its tokens, and all its pictures' rows at once."""
    budgets, end = scheduler.budgets, 0
    for whole in request.open_spans:
        if not end <= whole.start < whole.end <= len(request.token_ids):
            raise PromptError("The prompt's open spans overlap, are out of order, or lie outside of it.")
        end = whole.end
        if whole.length > budgets.max_num_batched_tokens:
            raise PromptTooLongError(
                f"{whole.length} tokens of the prompt see each other and must be computed at once; "
                f"max_num_batched_tokens is {budgets.max_num_batched_tokens}. Shorten the prompt or raise it."
            )
        pairs = zip(request.spans, request.media, strict=True)
        inside = {item.key: item for span, item in pairs if span.start < whole.end and whole.start < span.end}
        needed_bytes = budgets.embedding_bytes * sum(i.num_tokens for i in inside.values() if i.embeds is None)
        if needed_bytes > scheduler.encoder_cache.capacity_bytes:
            raise MediaLimitError(
                f"Pictures that are needed at once make {needed_bytes} bytes of embeddings; encoder_cache_bytes is "
                f"{scheduler.encoder_cache.capacity_bytes}. Send fewer or smaller ones, or raise it."
            )

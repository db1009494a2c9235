"""What the commands say beside an answer: pictures, tokens, times. Plain lines, made from a RequestOutput."""

from __future__ import annotations

from fovea.core.types import MediaReport, RequestOutput


def picture_line(media: MediaReport, name: str) -> str:
    """photo.jpg: 1920x1080 pixels, shown as 1372x784, 1372 tokens"""
    size = f"{media.original_width_px}x{media.original_height_px}"
    used = f"{media.width_px}x{media.height_px}"
    shown = "" if used == size else f", shown as {used}"
    cached = ", from the cache" if media.cache_hit else ""
    return f"{name}: {size} pixels{shown}, {media.num_tokens} tokens{cached}"


def timing_line(output: RequestOutput) -> str:
    """Tokens in and out, the time to the first token and the rate after it."""
    num_tokens = sum(len(completion.token_ids) for completion in output.outputs)
    line = f"{len(output.prompt_token_ids)} prompt tokens, {num_tokens} answer tokens"
    metrics = output.metrics
    if metrics is None:
        return line
    line += f", first token after {metrics.ttft_s:.2f} s"
    if num_tokens > 1 and metrics.decode_s > 0:
        line += f", then {(num_tokens - 1) / metrics.decode_s:.0f} tokens/s"
    return line

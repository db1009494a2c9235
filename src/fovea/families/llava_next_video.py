"""LLaVA-NeXT-Video: LLaVA-NeXT that was taught videos too; pictures are LLaVA-NeXT's.

Source: https://llava-vl.github.io/blog/2024-04-30-llava-next-video/ and transformers' LlavaNextVideoModel.
"""

from __future__ import annotations

from fovea.families.llava_next import LlavaNext


class LlavaNextVideo(LlavaNext):
    architectures = ("LlavaNextVideoForConditionalGeneration",)
    text_ties = True

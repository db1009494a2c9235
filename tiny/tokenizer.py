"""The tokenizer: Qwen2's byte-level scheme and special tokens, with whole words of the question language on top.

Text to be read stays letters: there are no merges, and a word is one token only if it stands in the vocabulary as a
whole (`ignore_merges`), so "circle" is one token and "cirkle" six. Any text can be encoded.
"""

import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tiny import phrases, tasks

# In the order of the published tokenizer; the first is padding and an end mark, <|im_end|> ends an answer.
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATH = Path(__file__).parents[1] / "src" / "fovea" / "assets" / "fovea-tiny" / "tokenizer.json"


def _pipeline(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build(samples: int = 25000, least: int = 25) -> Tokenizer:
    """Count the words of questions and fixed answers, and make each frequent one a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (not c.isascii(), ord(c)))
    bare = _pipeline({c: i for i, c in enumerate(alphabet)})
    seen: Counter[str] = Counter({"system": least, "user": least, "assistant": least})
    for text in _language(samples):
        seen.update(token for token, _ in bare.pre_tokenizer.pre_tokenize_str(text))
    words = sorted(
        w
        for w, n in seen.items()
        if n >= least and len(w) > 1 and w.lstrip("Ġ").isalpha() and w.isascii() | (w[0] == "Ġ")
    )
    tokenizer = _pipeline({token: i for i, token in enumerate([*alphabet, *words])})
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return tokenizer


def _language(samples: int) -> list[str]:
    rng = Random(20)
    makers = (tasks.scene_sample, tasks.talk_sample, tasks.pair_sample, tasks.easy_vqa_sample, tasks.blank_sample)
    texts = list(phrases.SYSTEM_PROMPTS) * 10 + ["You are a helpful assistant."] * 100
    for i in range(samples):
        turns = makers[i % len(makers)](rng, (112, 112), False).turns
        texts += [part for turn in turns for part in turn]
    for i in range(samples // 10):
        texts += [q for q, _ in tasks.text_sample(rng, (140, 112), False).turns]
        texts += [q for q, _ in tasks.digits_sample(rng, (140, 112), False).turns]
        texts += [part for turn in tasks.motion_sample(rng, (28, 28), False, 2 + i % 2).turns for part in turn]
    return texts


@cache
def load() -> Tokenizer:
    return Tokenizer.from_file(str(PATH))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    target.parent.mkdir(parents=True, exist_ok=True)
    made = build()
    made.save(str(target))
    sys.stdout.write(
        json.dumps({"tokens": made.get_vocab_size(), "example": made.encode("What colour is the circle?").tokens})
        + "\n"
    )

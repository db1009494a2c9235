"""The floor is never above what the tokenizer gives, and high where a long text must be refused."""

from __future__ import annotations

import random
import time
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from fovea.prompt.token_floor import MAX_CHARS_PER_TOKEN
from fovea.prompt.tokenizer import Tokenizer

MODELS = Path(__file__).parents[3] / "shared" / "models"
TINY = Path(__file__).parents[2] / "src" / "fovea" / "assets" / "fovea-tiny"
NAMES = ("llava-1.5-7b-hf", "Phi-3.5-vision-instruct", "Qwen2-VL-2B-Instruct")
PUBLISHED = [
    pytest.param(MODELS / name, marks=pytest.mark.skipif(not (MODELS / name).is_dir(), reason="needs ../shared/models"))
    for name in NAMES
]
FOLDERS = [TINY, *PUBLISHED]
EMOJI = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@cache
def load(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_text_has_fewer_tokens_than_its_floor(folder: Path) -> None:
    tokenizer, draw = load(folder), random.Random(0)
    words = [tokenizer.decode([draw.randrange(tokenizer.vocab_size)], skip_special_tokens=False) for _ in range(500)]
    odd = ["e\u0301", "\u1112\u1161\u11ab", "\u0344", EMOJI, " " * 130, "\n" * 40, "\u3000" * 9, "\x00", "\U000e0fff"]
    longest = sorted(set(words) | set(odd), key=len)[-20:]
    for text in (*words, *odd, *tokenizer.special_tokens, *(word * 100 for word in longest)):
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False)), repr(text)
    for _ in range(200):
        text = "".join(draw.choice((words, odd, longest))[draw.randrange(9)] for _ in range(draw.randrange(1, 30)))
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False)), repr(text)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_special_token_that_eats_blanks_is_allowed_for(folder: Path) -> None:
    tokenizer = load(folder)
    for token in tokenizer.special_tokens:
        text = f"{' ' * 300}{token}{' ' * 300}\n\n{token}\t\u3000\x85"
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_long_text_of_emoji_is_known_to_be_long_without_tokenising_it(folder: Path) -> None:
    tokenizer, text = load(folder), EMOJI * 200_000
    started = time.perf_counter()
    assert tokenizer.fewest_tokens(text) > 131_072
    assert time.perf_counter() - started < 2.0


def test_a_tokenizer_that_shortens_text_in_its_own_way_gets_the_widest_bound() -> None:
    backend = Backend(models.BPE({"a": 0, "b": 1}, []))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer = Tokenizer(backend.to_str())
    assert tokenizer.fewest_tokens("ab" * MAX_CHARS_PER_TOKEN) == 2


def test_bytes_without_a_token_count_nothing() -> None:
    backend = Backend(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(backend.to_str())
    assert tokenizer.fewest_tokens("abxab") == len(tokenizer.encode("abxab")) == 4

"""How few tokens a text can become: known in milliseconds, where tokenising a long text takes seconds.

A token of L units (bytes or characters) holds each of its units at the cost of 1/L of a token. So a unit costs a text
at least 1/M, M being the length of the longest token that the unit occurs in, and the sum over a text is a number of
tokens that no way of cutting it falls below. A vocabulary with tokens of 128 blanks thus costs emoji no accuracy.

This holds for tokenizers that keep what they read: byte-level BPE (Qwen2, Llama 3) and SentencePiece's BPE (Llama 2,
Phi-3, Gemma), with nothing before them but NFC and stand-ins for blanks. Any other is taken to have tokens of
MAX_CHARS_PER_TOKEN characters.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers

MAX_CHARS_PER_TOKEN = 256  # the longest runs of blanks in published vocabularies are half of this
BLANK = "\u2581"  # SentencePiece's

_ROUNDING = 1e-6
_KEEPING = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split")  # of the pre-tokenizers


class TokenFloor:
    """See the module docstring. Immutable. `definition` is the tokenizer.json that `backend` was made from."""

    def __init__(self, definition: str, backend: tokenizers.Tokenizer) -> None:
        data = json.loads(definition)
        model, normalizers, splitters = (_steps(data.get(name)) for name in ("model", "normalizer", "pre_tokenizer"))
        added = backend.get_added_tokens_decoder().values()
        self._drops_blanks = any(token.lstrip or token.rstrip for token in added)  # one token eats any number of them
        self._has_bytes = any(step.get("type") == "ByteLevel" for step in splitters)
        self._composes = any(step.get("type") == "NFC" for step in normalizers)
        self._is_known = (
            all(map(_is_plain_bpe, model))
            and all(map(_keeps_blanks if not self._has_bytes else _is_nfc, normalizers))
            and all(map(_keeps_all, splitters))
        )
        vocab = backend.get_vocab(with_added_tokens=True) if self._is_known else {}
        if self._has_bytes:
            contents = {token.content for token in added}
            costs = _costs(_as_bytes(vocab, contents))
            self._byte_costs = np.array([costs.get(byte, 0.0) for byte in range(256)])
        else:
            self._costs: Mapping[str, float] = _costs(text.replace(" ", BLANK) for text in vocab)
            falls_back = all(step.get("byte_fallback") for step in model)
            whole = falls_back and all(f"<0x{byte:02X}>" in vocab for byte in range(256))
            self._unknown_cost = 1.0 if whole else 0.0  # else any number of them may become one unknown token

    def at_least(self, text: str) -> int:
        """`text` has this many tokens or more."""
        if not self._is_known:
            return math.ceil(len(text) / MAX_CHARS_PER_TOKEN)
        if self._drops_blanks:
            text = "".join(text.split())
        if self._composes:
            text = unicodedata.normalize("NFC", text)
        if self._has_bytes:
            units = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
            cost = float(np.bincount(units, minlength=256) @ self._byte_costs)
        else:
            letters = Counter(text.replace(" ", BLANK))
            cost = sum(count * self._costs.get(letter, self._unknown_cost) for letter, count in letters.items())
        return math.ceil(cost * (1 - _ROUNDING))


def _costs(tokens: Iterable[str] | Iterable[bytes]) -> dict[Any, float]:
    costs: dict[Any, float] = {}
    for token in sorted(tokens, key=len, reverse=True):
        for unit in set(token).difference(costs):
            costs[unit] = 1 / len(token)
    return costs


def _as_bytes(vocab: Iterable[str], contents: Iterable[str]) -> Iterator[bytes]:
    """The bytes that the tokens of a byte-level vocabulary stand for; added tokens are spelled as they are read."""
    letters = _byte_letters()
    for text in vocab:
        if all(letter in letters for letter in text):
            yield bytes(letters[letter] for letter in text)
    for text in contents:
        yield text.encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A part of the pipeline as the list of what it does."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        inner = part.get("normalizers") or part.get("pretokenizers") or []
        return [step for one in inner for step in _steps(one)]
    return [part]


def _is_plain_bpe(step: Mapping[str, Any]) -> bool:
    return (
        step.get("type") in ("BPE", None)
        and "merges" in step
        and not step.get("continuing_subword_prefix")
        and not step.get("end_of_word_suffix")
    )


def _is_nfc(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "NFC"


def _keeps_blanks(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Replace":
        return step.get("pattern") == {"String": " "} and step.get("content") == BLANK
    return step.get("type") in ("NFC", "Prepend")


def _keeps_all(step: Mapping[str, Any]) -> bool:
    stands_in = step.get("type") != "Metaspace" or step.get("replacement") == BLANK
    return step.get("type") in _KEEPING and step.get("behavior") != "Removed" and stands_in

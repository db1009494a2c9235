"""The tokenizer in a GGUF file's metadata, as the text of a tokenizer.json.

Two kinds: "gpt2" is byte-level BPE with its merges and the name of a pattern that splits text first; "llama" is
SentencePiece's BPE, whose merges follow from the scores of its pieces. Patterns are those of the published
tokenizer.json of the models that the names stand for; ggml's own, where there is none (`default`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fovea.core.errors import ModelError, UnsupportedModelError
from fovea.core.log import logger
from fovea.families.gguf_file import GgufFile

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
MAX_TOKEN_CHARS = 2048
MAX_SCORED_CHARS = 16 * 1024**2  # of all pieces together: each is tried at every place where it can be cut
BLANK = "\u2581"  # what SentencePiece writes for a space

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Patterns that are applied one after the other, each inside what the one before left or cut out.
PATTERNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ),
        "gpt-2": (_GPT2,),
        "smollm": (r"\p{N}", _GPT2),
        "llama-bpe": (_WORDS + r"\p{N}{1,3}" + _REST,),
        "qwen2": (_WORDS + r"\p{N}" + _REST,),
        "tekken": (_TEKKEN,),
    }
)
ALIASES: Mapping[str, str] = MappingProxyType(
    {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
)
NORMALIZED = ("qwen2",)  # whose text is composed first (NFC)
WHOLE_WORDS_FIRST = ("llama-bpe", "tekken")  # a stretch that is a token is one, whatever the merges say
BEGINS = ("llama-bpe", "tekken")  # a text begins with BOS unless the file says otherwise


def gguf_definition(file: GgufFile) -> str:
    """Raises ModelError for what is missing or contradictory, UnsupportedModelError for another kind."""
    kind = file.get(str, "tokenizer.ggml.model")
    tokens = file.strings("tokenizer.ggml.tokens")
    kinds = _kinds(file, len(tokens))
    _check_tokens(file, tokens)
    makers = {"gpt2": _byte_level, "llama": _scored}
    if kind not in makers:
        raise UnsupportedModelError(
            f"{file.path} has a tokenizer of the kind {kind[:60]!r}; supported: {', '.join(makers)}. "
            "Name a folder with a tokenizer.json with the option tokenizer."
        )
    parts = makers[kind](file, tokens, kinds)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": text, "special": kind != USER_DEFINED, **flags}
        for number, (text, kind) in enumerate(zip(tokens, kinds))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return json.dumps(
        {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}, ensure_ascii=False
    )


def _kinds(file: GgufFile, count: int) -> Sequence[float]:
    kinds = file.numbers("tokenizer.ggml.token_type")
    if len(kinds) != count:
        raise ModelError(f"{file.path} has {count:,} tokens and {len(kinds):,} types of tokens.")
    return kinds


def _check_tokens(file: GgufFile, tokens: Sequence[str]) -> None:
    if not tokens or max(map(len, tokens)) > MAX_TOKEN_CHARS:
        raise ModelError(f"{file.path}: the vocabulary must have tokens of up to {MAX_TOKEN_CHARS:,} characters.")
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(text for text in tokens if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise ModelError(f"{file.path} has the token {twice[:60]!r} twice.")


def _byte_level(file: GgufFile, tokens: Sequence[str], kinds: Sequence[float]) -> dict[str, Any]:
    name = file.get(str, "tokenizer.ggml.pre", "")
    if not name:
        logger.warning("%s does not say how its tokenizer splits text; ggml's default is used", file.path)
    name = ALIASES.get(name, name) or "default"
    if name not in PATTERNS:
        raise UnsupportedModelError(
            f"{file.path}: 'tokenizer.ggml.pre' is {name[:60]!r}; supported: {', '.join([*PATTERNS, *ALIASES])}. "
            "Name a folder with a tokenizer.json with the option tokenizer."
        )
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in PATTERNS[name]
    ]
    return {
        "normalizer": {"type": "NFC"} if name in NORMALIZED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": _wrapping(file, tokens, begins=name in BEGINS),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in WHOLE_WORDS_FIRST,
            "vocab": vocab,
            "merges": _merges(file, vocab),
        },
    }


def _merges(file: GgufFile, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(file.strings("tokenizer.ggml.merges")):
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelError(f"{file.path}: merge {number}, {line[:60]!r}, is not of tokens of the vocabulary.")
        merges.append((left, right))
    return merges


def _scored(file: GgufFile, tokens: Sequence[str], kinds: Sequence[float]) -> dict[str, Any]:
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ModelError(f"{file.path} has {len(tokens):,} tokens and {len(scores):,} scores.")
    if sum(map(len, tokens)) > MAX_SCORED_CHARS:
        raise ModelError(f"{file.path}: the vocabulary has more than {MAX_SCORED_CHARS:,} characters.")
    if file.get(bool, "tokenizer.ggml.remove_extra_whitespaces", False):
        raise UnsupportedModelError(f"{file.path}: 'tokenizer.ggml.remove_extra_whitespaces' is not supported.")
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    pieces = {text: scores[i] for text, i in vocab.items() if kinds[i] not in (UNKNOWN, CONTROL, BYTE)}
    blanks: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": BLANK}]
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if file.get(bool, "tokenizer.ggml.add_space_prefix", True):
        blanks.insert(0, {"type": "Prepend", "prepend": BLANK})
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": blanks},
        "pre_tokenizer": None,
        "post_processor": _wrapping(file, tokens, begins=True),
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((text for text, i in vocab.items() if kinds[i] == UNKNOWN), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges_by_score(pieces, vocab),
        },
    }


def _merges_by_score(pieces: Mapping[str, float], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose piece scores best: every way to make a piece, best pieces first."""
    found = []
    for piece, score in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                found.append((-score, vocab[piece], vocab[left], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _wrapping(file: GgufFile, tokens: Sequence[str], *, begins: bool) -> dict[str, Any] | None:
    """A post-processor that puts BOS before a text and EOS behind it, as the file says."""
    around = []
    for role, default in (("bos", begins), ("eos", False)):
        if file.get(bool, f"tokenizer.ggml.add_{role}_token", default):
            token_id = file.get(int, f"tokenizer.ggml.{role}_token_id")
            if not 0 <= token_id < len(tokens):
                raise ModelError(f"{file.path}: 'tokenizer.ggml.{role}_token_id' is {token_id}, which is no token.")
            around.append((role, tokens[token_id], token_id))
    if not around:
        return None

    def items(sequence: str) -> list[dict[str, Any]]:
        place = {"bos": 0, "eos": 2}
        marks = [(place[role], {"SpecialToken": {"id": text, "type_id": 0}}) for role, text, _ in around]
        text = (1, {"Sequence": {"id": sequence, "type_id": 0}})
        return [item for _, item in sorted([*marks, text], key=lambda pair: pair[0])]

    special = {text: {"id": text, "ids": [token_id], "tokens": [text]} for _, text, token_id in around}
    return {
        "type": "TemplateProcessing",
        "single": items("A"),
        "pair": items("A") + items("B"),
        "special_tokens": special,
    }

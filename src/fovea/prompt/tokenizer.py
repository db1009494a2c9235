"""Text to token ids and back.

`Tokenizer` wraps a `tokenizer.json` exactly as published. It never changes after loading, so threads may share it. Two
copies of the backend are kept, because the switch "special tokens typed in text count" is a mutable property of the
backend: one copy reads them as tokens, the other as plain text.

Added tokens that are not marked special (Gemma's runs of newlines, `<tool_call>` of some models) are part of ordinary
text and are read as tokens by both copies; a family that writes one of them as a marker names it in `extra_special`.

Limits: a file over MAX_FILE_BYTES is refused. A pattern in a hostile tokenizer.json can make one call slow (the regex
engine gives up after a fixed number of steps, which becomes a PromptError here); calls cannot be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import tokenizers

from fovea.core.errors import FoveaError, ModelError, ModelNotFoundError, PromptError
from fovea.core.log import logger
from fovea.core.turns import outside_turn
from fovea.families.config_reader import read_json, read_text
from fovea.families.gguf_file import is_gguf, read_gguf
from fovea.prompt.gguf_tokenizer import gguf_definition
from fovea.prompt.token_floor import TokenFloor

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PROBE = "a"
SHORT_CHARS = 400  # tokenised in less time than it takes to leave one's turn and come back

T = TypeVar("T")


class Tokenizer:
    """See the module docstring. Raises PromptError for text it cannot take, ModelError for files it cannot read."""

    def __init__(
        self,
        definition: str,
        config: Mapping[str, Any] | None = None,
        *,
        extra_special: Iterable[str] = (),
        source: str = "tokenizer.json",
    ) -> None:
        """`definition` is the text of a tokenizer.json, `config` the content of tokenizer_config.json."""
        config = config or {}
        self._special = _backend(definition, config, source)
        self._plain = _backend(definition, config, source)
        self.special_token_strings: Mapping[str, str] = MappingProxyType(_named_tokens(config))
        self._control = _mark_control(self._plain, [*self.special_token_strings.values(), *extra_special])
        added = self._special.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = MappingProxyType(
            {token.content: token_id for token_id, token in sorted(added.items()) if token.special}
        )
        self._special_ids = frozenset(self.special_tokens.values())
        base_size = self._special.get_vocab_size(with_added_tokens=False)
        self.vocab_size: int = max([base_size, *(token_id + 1 for token_id in added)])
        self._prefix, self._suffix = _wrapping(self._special)
        self._probe = _probe(self._plain)
        self._anchor = self._plain.encode(self._probe, add_special_tokens=False).ids[-1:]
        self._anchor_text = self.decode(self._anchor)
        self._restarts = self._segments_restart()
        self._floor = TokenFloor(definition, self._special)
        self._texts: dict[int, str] = {}
        # Whether the text of ids is that of their bytes, whatever stands beside them.
        self.is_byte_level = isinstance(self._special.decoder, tokenizers.decoders.ByteLevel)

    @classmethod
    def load(cls, folder: Path, *, extra_special: Iterable[str] = ()) -> Tokenizer:
        """Read the tokenizer of a model folder or a GGUF file.

        extra_special: further tokens a user's text must not produce.
        """
        config = load_tokenizer_config(folder)
        path = folder / "tokenizer.json"
        if is_gguf(folder):
            path, text = folder, gguf_definition(read_gguf(folder))
        else:
            text = read_text(path) if path.is_file() else _convert(folder)
        return cls(text, config, extra_special=extra_special, source=str(path))

    @property
    def bos_token(self) -> str | None:
        return self.special_token_strings.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_token_strings.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.special_token_strings.get("pad_token")

    @property
    def bos_id(self) -> int | None:
        return self.token_id(self.bos_token) if self.bos_token else None

    @property
    def eos_id(self) -> int | None:
        return self.token_id(self.eos_token) if self.eos_token else None

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so, or None."""
        found: int | None = self._special.token_to_id(text)
        return found

    def has_id(self, token_id: int) -> bool:
        return 0 <= token_id < self.vocab_size and self._special.id_to_token(token_id) is not None

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        add_special_tokens: add what the model puts around a text (BOS for Llama and Phi).
        parse_special: False leaves special tokens spelled in the text as plain text.
        """
        encoding = self._encode(self._special if parse_special else self._plain, text)
        return [*self._prefix, *encoding.ids, *self._suffix] if add_special_tokens else list(encoding.ids)

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of the joined pieces `(text, trusted)`; only trusted text produces special tokens.

        Equal to `encode` of the joined text unless untrusted text spells a special token, alone or together with its
        neighbours. Then the text is cut at the special tokens of the trusted pieces and the rest is plain.
        """
        filled = [piece for piece in pieces if piece[0]]
        parts = [
            ("".join(text for text, _ in run), trusted) for trusted, run in groupby(filled, lambda piece: piece[1])
        ]
        whole = "".join(text for text, _ in parts)
        encoding = self._encode(self._special, whole)
        if all(_inside_trusted(hit, whole, parts) for hit in self._hits(encoding)):
            ids = list(encoding.ids)
        else:
            ids = self._encode_cut(whole, parts)
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def fewest_tokens(self, text: str) -> int:
        """`encode` gives this many ids or more. Takes milliseconds for a text that would take seconds to encode."""
        return self._floor.at_least(text)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids the tokenizer does not know are left out."""
        wanted = [token_id for token_id in ids if 0 <= token_id < self.vocab_size]
        error = PromptError(f"The tokenizer could not turn {len(wanted)} token ids into text.")
        return _guard(lambda: str(self._special.decode(wanted, skip_special_tokens=skip_special_tokens)), error)

    def token_text(self, token_id: int) -> str:
        """Text of one token for display, with its leading space; "" for an unknown id."""
        text = self._texts.get(token_id)
        if text is None:
            whole = self.decode([*self._anchor, token_id], skip_special_tokens=False)
            text = self._texts[token_id] = whole[len(self._anchor_text) :]
        return text

    def _encode(self, backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
        _check_text(text)
        error = PromptError(
            f"The tokenizer failed on a text of {len(text)} characters. The model's tokenizer.json has a pattern that "
            "does not end on this text; shorten or change the text."
        )
        # A batch, because that lets other threads of Python run meanwhile; `encode` holds them all up.
        with outside_turn() if len(text) > SHORT_CHARS else nullcontext():
            return _guard(lambda: backend.encode_batch([text], add_special_tokens=False)[0], error)

    def _hits(self, encoding: tokenizers.Encoding) -> list[_Hit]:
        """Where control tokens were read in the encoded text."""
        hits: list[_Hit] = []
        ids = encoding.ids
        if self._control.isdisjoint(ids):
            return hits
        for index, token_id in enumerate(ids):
            if token_id in self._control:
                place = encoding.token_to_chars(index)
                assert place is not None, "a token of the text has a place in it"
                hits.append(_Hit(place[0], place[1], token_id))
        return hits

    def _encode_cut(self, whole: str, parts: Sequence[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        start = position = 0
        for text, trusted in parts:
            for hit in self._hits(self._encode(self._special, text)) if trusted else ():
                ids += self._encode_segment(whole[start : position + hit.start], first=start == 0)
                ids.append(hit.token_id)
                start = position + hit.end
            position += len(text)
        return ids + self._encode_segment(whole[start:], first=start == 0)

    def _encode_segment(self, text: str, *, first: bool) -> list[int]:
        """Plain ids of a stretch between two special tokens, as they would be inside the whole text."""
        if not text:
            return []
        if first or self._restarts:
            return list(self._encode(self._plain, text).ids)
        lead = list(self._encode(self._plain, "\n").ids)
        ids = list(self._encode(self._plain, "\n" + text).ids)
        return ids[len(lead) :] if ids[: len(lead)] == lead else list(self._encode(self._plain, text).ids)

    def _segments_restart(self) -> bool:
        """Whether text after a special token is encoded like text at the start (SentencePiece's prefix space)."""
        alone = self._encode(self._plain, self._probe).ids
        for text, token_id in self.special_tokens.items():
            ids = self._encode(self._special, text + self._probe).ids
            if ids[:1] == [token_id]:
                return bool(ids[1:] == alone)
        return True


class _Hit(NamedTuple):
    start: int
    end: int
    token_id: int


def load_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from special_tokens_map.json and added_tokens.json where these exist."""
    config = read_json(folder, "tokenizer_config.json")
    for name, value in read_json(folder, "special_tokens_map.json").items():
        if config.get(name) is None:
            config[name] = value
    if "added_tokens_decoder" not in config:
        added = read_json(folder, "added_tokens.json")
        config["added_tokens_decoder"] = {
            str(token_id): {"content": text} for text, token_id in added.items() if isinstance(token_id, int)
        }
    return config


def _backend(definition: str, config: Mapping[str, Any], source: str) -> tokenizers.Tokenizer:
    error = ModelError(f"{source} is not a tokenizer this version of the tokenizers library can read.")
    return _guard(lambda: _complete(tokenizers.Tokenizer.from_str(definition), config), error)


def _complete(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Add what the config names and the file lacks, as transformers does.

    add_bos_token and add_eos_token of the config are ignored, as there: the file's own post-processor decides.
    """
    backend.no_truncation()
    backend.no_padding()
    named = _named_tokens(config)
    present = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in _declared_tokens(config, named) if token.content not in present])
    for text in set(named.values()) & present.keys():
        if not present[text].special:
            present[text].special = True
            backend.add_special_tokens([present[text]])
    return backend


def _declared_tokens(config: Mapping[str, Any], named: Mapping[str, str]) -> list[tokenizers.AddedToken]:
    declared = config.get("added_tokens_decoder")
    entries = declared if isinstance(declared, Mapping) else {}
    tokens = []
    for _, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        options = {k: bool(entry[k]) for k in ("lstrip", "rstrip", "single_word", "normalized") if k in entry}
        special = bool(entry.get("special", True)) or entry["content"] in named.values()
        tokens.append(tokenizers.AddedToken(entry["content"], special=special, **options))
    known = {token.content for token in tokens}
    wanted = dict.fromkeys(text for text in named.values() if text not in known)
    return tokens + [tokenizers.AddedToken(text, special=True, normalized=False) for text in wanted]


def _wrapping(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids the post-processor puts before and after a text."""
    probe = _probe(backend)
    bare = backend.encode(probe, add_special_tokens=False).ids
    full = backend.encode(probe, add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ModelError("The tokenizer's post-processor changes the text's own tokens; this is not supported.")


def _probe(backend: tokenizers.Tokenizer) -> str:
    """A short text that this tokenizer can encode at all."""
    some = (backend.id_to_token(token_id) or "" for token_id in range(min(backend.get_vocab_size(), 1000)))
    return next((text for text in (_PROBE, *some) if backend.encode(text, add_special_tokens=False).ids), _PROBE)


def _mark_control(plain: tokenizers.Tokenizer, extra: Iterable[str]) -> frozenset[int]:
    """Make `plain` leave special tokens and those named in `extra` as text; their ids."""
    added = plain.get_added_tokens_decoder()
    names = set(extra)
    for token in added.values():
        if not token.special and token.content in names:
            token.special = True
            plain.add_special_tokens([token])
    plain.encode_special_tokens = True
    return frozenset(i for i, token in plain.get_added_tokens_decoder().items() if token.special)


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by role (bos_token, ..., image_token), as a chat template sees them."""
    extra = config.get("extra_special_tokens")
    entries = {**{name: config.get(name) for name in _NAMED}, **(extra if isinstance(extra, Mapping) else {})}
    named = {}
    for name, value in entries.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str) and text:
            named[name] = text
    return named


def _inside_trusted(hit: _Hit, whole: str, parts: Sequence[tuple[str, bool]]) -> bool:
    """Whether the token itself, without blanks it swallowed beside it, lies in one trusted piece."""
    found = whole[hit.start : hit.end]
    start = hit.start + len(found) - len(found.lstrip())
    end = hit.end - (len(found) - len(found.rstrip()))
    position = 0
    for text, trusted in parts:
        if position <= start and max(end, start) <= position + len(text):
            return trusted
        position += len(text)
    return False


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The text has half of a surrogate pair (character {error.start}), which is not valid Unicode. Remove it.",
            code="invalid_value",
        ) from None


def _guard(call: Callable[[], T], error: FoveaError) -> T:
    """Run a call into the tokenizers library; whatever it raises, Rust panics included, becomes `error`."""
    try:
        return call()
    except FoveaError:
        raise
    except Exception as cause:
        raise error from cause
    except BaseException as cause:
        # pyo3's PanicException cannot be imported and is no Exception; KeyboardInterrupt and SystemExit go through.
        if type(cause).__name__ != "PanicException":
            raise
        raise error from None


def _convert(folder: Path) -> str:
    """tokenizer.json as transformers makes it from the older files of a folder that has none."""
    if not folder.is_dir():
        raise ModelNotFoundError(f"The tokenizer's folder {folder} does not exist.")
    missing = ModelError(
        f"{folder} has no tokenizer.json, and transformers cannot make one from the other files. "
        "Name a folder that has one with the option tokenizer."
    )

    def convert() -> str:
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
        return str(backend.to_str())

    definition = _guard(convert, missing)
    logger.warning("%s has no tokenizer.json; it was made by transformers, which is slower to load.", folder)
    return definition

"""Token ids to text, one at a time, with stop strings.

`Detokenizer` gives out text as soon as it is certain: never half a character, never the beginning of what may become
a stop string. The deltas joined are `decode(tail + ids)` without `decode(tail)`, where `tail` are the last tokens of
the prompt (they decide whether the first token keeps its leading space); with an empty tail, `decode(ids)`.

That equality has two exceptions, both for ids no model means. Byte-fallback (SentencePiece) vocabularies decode a run
of byte tokens to replacement characters as a whole if any byte of it is invalid; what was given out before the invalid
byte stays as it was. And a decoder that rewrites earlier text (WordPiece clean-up) is followed only as far as its text
grows at the end.

The match that is complete first wins, the longest of those that are complete at the same character; so the result does
not depend on how the text is cut into tokens. Each token costs two decodes of a window of a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from fovea.prompt.tokenizer import Tokenizer

TAIL_TOKENS = 8
TOKENS_AT_ONCE = 64
MOST_CUT = 4  # tokens at the end of a part that may hold an unfinished character
MAX_PENDING_TOKENS = 16  # a character has at most 4 bytes; so many tokens without a whole one are garbage
_REPLACEMENT = "\ufffd"
_MAX_BROKEN_CHARS = 3  # an unfinished character is decoded to so many replacement characters at most


class Detokenizer:
    """The text of one completion. `text` is what was given out so far, `stopped` the stop string that ended it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_token_ids_tail: Sequence[int] = (),
        skip_special_tokens: bool = True,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._include_stop = include_stop
        self._matchers = [_Matcher(text) for text in dict.fromkeys(stop) if text]
        self._check_stop = True
        self._chunks: list[str] = []
        self._held = ""
        self.stopped: str | None = None
        # The window: tokens whose text is not settled, led by those of the last settled text.
        self._window = [i for i in prompt_token_ids_tail[-TAIL_TOKENS:] if self._is_visible(i)]
        self._num_settled = len(self._window)  # tokens of the window whose text was given out entirely
        self._num_chars = len(self._stable(self._decode(self._window)))  # characters of the window given out

    @property
    def text(self) -> str:
        if len(self._chunks) > 1:
            self._chunks = ["".join(self._chunks)]
        return self._chunks[0] if self._chunks else ""

    def push(self, token_id: int, *, check_stop: bool = True) -> str:
        """Text that became certain with this token.

        check_stop=False: a stop string that ends in this token's text is text like any other (min_tokens).
        """
        if self.stopped is not None:
            return ""
        self._check_stop = check_stop
        if not self._is_visible(token_id):
            return ""
        self._window.append(token_id)
        return self._give(self._scan(self._decode_new(), check_stop))

    def push_all(self, token_ids: Sequence[int]) -> None:
        """`push` for each of them, when nobody asks for the text in between: many tokens for two decodes.

        Where the text has no broken characters, how it was cut into tokens made no difference; in a byte-level
        vocabulary not even where it has, unless the last is not finished.
        """
        assert not self._matchers, "stop strings are looked for token by token"
        visible = [token_id for token_id in token_ids if self._is_visible(token_id)]
        while visible:
            part = visible[:TOKENS_AT_ONCE]
            # Where the last character is not finished, one of a few tokens less may be.
            counts = range(len(part), max(0, len(part) - (MOST_CUT if self._tokenizer.is_byte_level else 1)), -1)
            taken = next((count for count in counts if self._take(part[:count])), 0)
            for token_id in part if not taken else ():
                self.push(token_id)
            visible = visible[taken or len(part) :]

    def _take(self, part: list[int]) -> bool:
        """Give out the text of these tokens at once, if it is certain."""
        new = self._decode([*self._window, *part])[self._num_chars :]
        is_cut = new.endswith(_REPLACEMENT) if self._tokenizer.is_byte_level else _REPLACEMENT in new
        if not new or is_cut:
            return False
        self._window, self._num_settled = part, len(part)
        self._num_chars = len(self._decode(part))
        self._give(self._scan(new, check_stop=False))
        return True

    def finish(self) -> str:
        """The rest: unfinished characters and text held back for a stop string that did not come."""
        if self.stopped is not None:
            return ""
        rest = self._decode(self._window)[self._num_chars :]
        self._window, self._num_settled, self._num_chars = [], 0, 0
        certain = self._scan(rest, self._check_stop)
        if self.stopped is None:
            certain, self._held = certain + self._held, ""
        return self._give(certain)

    def _decode_new(self) -> str:
        whole = self._decode(self._window)
        stable = self._stable(whole)
        new = stable[self._num_chars :]
        if not new:
            return ""
        self._num_chars = len(stable)
        if stable is whole:
            # Settled: the window now begins with the tokens that made `new`.
            self._window = self._window[self._num_settled :]
            self._num_settled = len(self._window)
            self._num_chars = len(self._decode(self._window))
        elif len(self._window) > 2 * MAX_PENDING_TOKENS:
            self._drop_garbage(whole[len(stable) :])
        return new

    def _stable(self, text: str) -> str:
        """`text` without the end that further tokens may change. The same object if all of it is stable."""
        if not text.endswith(_REPLACEMENT):
            return text
        stable = text.rstrip(_REPLACEMENT)
        if len(self._window) - self._num_settled < MAX_PENDING_TOKENS:
            return stable
        return text[: max(len(stable), len(text) - _MAX_BROKEN_CHARS)]

    def _drop_garbage(self, pending: str) -> None:
        """Shorten a window that holds only broken characters."""
        window = self._window[-MAX_PENDING_TOKENS:]
        text = self._decode(window)
        if text.endswith(pending):
            self._window, self._num_settled, self._num_chars = window, 0, len(text) - len(pending)

    def _scan(self, new: str, check_stop: bool) -> str:
        """Add `new` to the held text and return what is certain of it."""
        start = len(self._held)
        text = self._held + new
        if not self._matchers:
            return text
        for end, char in enumerate(new, start + 1):
            found = [matcher.stop for matcher in self._matchers if matcher.feed(char)]
            if found and check_stop:
                self.stopped, self._held = max(found, key=len), ""
                return text[:end] if self._include_stop else text[: end - len(self.stopped)]
        hold = max(matcher.matched for matcher in self._matchers)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def _give(self, text: str) -> str:
        if text:
            self._chunks.append(text)
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)

    def _is_visible(self, token_id: int) -> bool:
        return self._tokenizer.has_id(token_id) and not (self._skip_special and self._tokenizer.is_special(token_id))


class _Matcher:
    """Finds one string in characters that come one by one (Knuth, Morris, Pratt); `matched` is the part seen so far."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0] * (len(stop) + 1)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._fallback[length]
            length += stop[index] == stop[length]
            self._fallback[index + 1] = length

    def feed(self, char: str) -> bool:
        """Whether `char` completes the string."""
        while self.matched and char != self.stop[self.matched]:
            self.matched = self._fallback[self.matched]
        self.matched += char == self.stop[self.matched]
        if self.matched == len(self.stop):
            self.matched = self._fallback[self.matched]
            return True
        return False

"""Messages to prompt text, by the model's own Jinja template.

`ChatTemplate` renders what transformers' `apply_chat_template(tokenize=False)` renders. `render_pieces` also says which
stretches of the text the client wrote, so that special tokens typed there can be kept plain text. Templates come with
model folders and run in a sandbox; requests never bring one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from fovea.core.errors import InvalidOptionError, ModelError, PromptError
from fovea.families.config_reader import read_json, read_text
from fovea.prompt.content_format import ContentFormat, detect_content_format
from fovea.prompt.pieces import (
    MAX_DEPTH,
    Marks,
    Message,
    Piece,
    any_of,
    other_strings,
    plain_data,
    plain_messages,
    squeeze,
    strings_of,
    texts_of,
    with_tag,
)
from fovea.prompt.sandbox import MAX_OUTPUT_CHARS, RENDER_TIMEOUT_S, RefusedByTemplate, Sandbox

MAX_VARIABLES_CHARS = 64 * 1024
_RESERVED = re.compile(
    "messages|tools|documents|conversation|add_generation_prompt|continue_final_message|chat_template|tokenize|"
    "return_dict|return_tensors|padding|truncation|max_length|self|raise_exception|strftime_now|namespace|dict|range|"
    "cycler|joiner|loop|caller|varargs|kwargs|_.*|.*_token"
)


class ChatTemplate:
    """A compiled chat template, or the lack of one (then every `render` raises PromptError).

    tokens: special token strings by name (bos_token, ...), as variables for the template.
    special_tokens: every string that must not come from a request as a special token.
    """

    def __init__(
        self,
        source: str | None,
        *,
        tokens: Mapping[str, str] | None = None,
        special_tokens: Collection[str] = (),
        timeout_s: float = RENDER_TIMEOUT_S,
    ) -> None:
        self.source = source
        self._tokens = dict(tokens or {})
        self._timeout_s = timeout_s
        self._spelled = any_of(special_tokens)
        self._special = any_of(map(squeeze, special_tokens))
        self._environment = Sandbox()
        self._template: jinja2.Template | None = None
        self.content_format: ContentFormat = "string"
        if source is not None:
            tree = self._environment.read(source)
            self.content_format = detect_content_format(tree)
            self._template = self._environment.build(tree)

    @classmethod
    def load(
        cls,
        folder: Path,
        override: str | None = None,
        *,
        tokens: Mapping[str, str] | None = None,
        special_tokens: Collection[str] = (),
    ) -> ChatTemplate:
        """The template given by the option chat_template (`override`, a path or text), else the folder's."""
        source = _from_folder(folder) if override is None else _from_option(override)
        try:
            return cls(source, tokens=tokens, special_tokens=special_tokens)
        except ModelError as error:
            if override is not None:
                raise InvalidOptionError(f"chat_template: {error}") from error
            raise ModelError(f"{folder}: {error} Give another with the option chat_template.") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text.

        continue_final_message: leave the last message open for the model to go on with.
        variables: further names the template may read; names of our own are refused.
        """
        chat = plain_messages(messages)
        self._check_call(chat, add_generation_prompt, continue_final_message)
        return self._render(chat, add_generation_prompt, continue_final_message, self._check_variables(variables))

    def render_pieces(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[Piece]:
        """The text of `render` in pieces that say who wrote them.

        Texts are rendered once more between marks nobody can guess. A text whose marks do not come out whole (the
        template cuts, tests or drops it) is not marked; such texts, and all other strings of the request, must not
        spell a special token, with blanks left out and read across their borders; otherwise PromptError.
        """
        chat = plain_messages(messages)
        self._check_call(chat, add_generation_prompt, continue_final_message)
        extra = self._check_variables(variables)
        plain = self._render(chat, add_generation_prompt, continue_final_message, extra)
        marks = Marks(texts_of(chat), self._spelled)
        marked = marks.usable()
        while marked:
            text = self._render(marks.apply(chat, marked), add_generation_prompt, continue_final_message, extra)
            pieces, whole = marks.split(text, marked)
            if whole == marked and "".join(piece.text for piece in pieces) == plain:
                break
            marked = whole if whole < marked else frozenset()
        else:
            pieces = [Piece(plain, True)] if plain else []
        self._refuse_special([*other_strings(chat, marked), *strings_of(extra)])
        return pieces

    def _check_call(self, chat: list[dict[str, Any]], add_generation_prompt: bool, continue_final: bool) -> None:
        if self._template is None:
            raise PromptError(
                "This model has no chat template, so messages cannot be turned into a prompt. Give one with the option "
                "chat_template (a path or the Jinja text; the model's card or its instruct variant usually has it), or "
                "send a prompt instead of messages.",
                code="chat_template_error",
            )
        if not chat:
            raise PromptError(
                "The list of messages is empty; send at least one.", code="invalid_value", param="messages"
            )
        if continue_final and add_generation_prompt:
            raise PromptError(
                "continue_final_message needs add_generation_prompt=False; the two exclude each other.",
                code="unsupported_combination",
                param="continue_final_message",
            )

    def _check_variables(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        plain = plain_data(dict(variables or {}), MAX_DEPTH)
        for name in plain:
            if not name.isidentifier() or name in self._tokens or _RESERVED.fullmatch(name):
                raise PromptError(
                    f"The chat template variable {name[:64]!r} is reserved; choose another name.",
                    code="unsupported_value",
                    param="chat_template_kwargs",
                )
        size = sum(map(len, strings_of(plain)))
        if size > MAX_VARIABLES_CHARS:
            raise PromptError(
                f"The chat template variables have {size} characters; limit {MAX_VARIABLES_CHARS}.",
                code="string_too_long",
                param="chat_template_kwargs",
            )
        return dict(plain)

    def _render(
        self, chat: list[dict[str, Any]], add_generation_prompt: bool, continue_final: bool, extra: dict[str, Any]
    ) -> str:
        if not continue_final:
            return self._run(chat, add_generation_prompt, extra)
        tag = f"\ue000{secrets.token_hex(8)}\ue001 "
        text = self._run(with_tag(chat, tag), add_generation_prompt, extra)
        place = text.rfind(tag.strip())
        if place < 0:
            raise PromptError(
                "The chat template leaves out the final message, so it cannot be continued.", code="chat_template_error"
            )
        # The blank after the tag is gone where the template trims texts; then the blanks before it go too.
        return text[:place] if text[place:].startswith(tag) else text[:place].rstrip()

    def _run(self, chat: list[dict[str, Any]], add_generation_prompt: bool, extra: dict[str, Any]) -> str:
        assert self._template is not None, "checked by _check_call"
        values = {**self._tokens, **extra, "messages": chat, "tools": None, "documents": None}
        values["add_generation_prompt"] = add_generation_prompt
        chunks: list[str] = []
        size = 0
        with self._environment.budget(self._timeout_s):
            try:
                for chunk in self._template.generate(values):
                    size += len(chunk)
                    if size > MAX_OUTPUT_CHARS:
                        raise PromptError(
                            f"The chat template made over {MAX_OUTPUT_CHARS} characters (the limit).",
                            code="chat_template_error",
                        )
                    chunks.append(chunk)
            except PromptError:
                raise
            except RefusedByTemplate as error:
                raise PromptError(
                    f"The model's chat template refuses these messages: {error.reason!r}", code="chat_template_error"
                ) from None
            except Exception as error:
                # Protects the request from whatever a template does; its text is not ours to repeat.
                kind = type(error).__name__
                raise PromptError(
                    f"The chat template failed ({kind}). Check the messages' roles and content.",
                    code="chat_template_error",
                ) from error
        return "".join(chunks)

    def _refuse_special(self, strings: Sequence[str]) -> None:
        found = self._special.search("".join(map(squeeze, strings)))
        if found:
            raise PromptError(
                f"The request spells the special token {found.group()!r} where the chat template rearranges its text, "
                "so it cannot be kept apart from the template's own. Remove it.",
                code="invalid_value",
                param="messages",
            )


def _from_option(value: str) -> str:
    path = Path(value)
    try:
        if path.is_file():
            return read_text(path)
    except (OSError, ValueError):
        pass  # a template given as text is no valid path
    if "{" in value:
        return value
    raise InvalidOptionError(
        f"chat_template is {value[:200]!r}: neither an existing file nor Jinja text (which would contain a brace)."
    )


def _from_folder(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        source = _default_of(read_json(folder, name).get("chat_template"))
        if source is not None:
            return source
    return None


def _default_of(value: Any) -> str | None:
    """The template itself, or the one named "default" of several."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
    if isinstance(value, Mapping):
        value = value.get("default")
    return value if isinstance(value, str) else None

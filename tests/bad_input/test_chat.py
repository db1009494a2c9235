"""Conversations: bad ones fail alone; and nothing a user types is read as a picture or a special token."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from fovea.core.errors import (
    BatchError,
    FoveaError,
    MediaDecodeError,
    MediaError,
    MediaLimitError,
    MediaSourceError,
    PromptError,
    PromptTooLongError,
)
from fovea.core.params import SamplingParams
from fovea.llm import LLM
from tests.bad_input.harness import assert_helpful, image
from tests.media.corpus import encode, huge_headers
from tests.oracle.checkpoints import QWEN_TOKENS
from tests.parity.support import FAMILIES, GREEDY, Engines, tokens

ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1)


def user(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}]


def url(value: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": value}}


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


PICTURE = {"type": "image_pil", "image_pil": image()}

BAD: dict[str, tuple[Any, type[FoveaError], tuple[str, ...]]] = {
    "no list": ("hello", PromptError, ("messages",)),
    "none": (None, PromptError, ("messages",)),
    "a number": (5, PromptError, ("messages",)),
    "a single message": ({"role": "user", "content": "a"}, PromptError, ("messages must be a list",)),
    "no messages": ([], PromptError, ("at least one",)),
    "a message of text": (["hello"], PromptError, ("'role'", "'content'")),
    "no role": ([{"content": "a"}], PromptError, ("'role'",)),
    "a role that is a number": ([{"role": 5, "content": "a"}], PromptError, ("'role'",)),
    "content that is a number": ([{"role": "user", "content": 5}], PromptError, ("content", "int")),
    "content that is a dict": ([{"role": "user", "content": {"type": "text"}}], PromptError, ("content",)),
    "a part that is a number": (user(5), PromptError, ("content part", "int")),
    "a part that is a picture": (user(image()), PromptError, ("content part",)),
    "an unknown part": (user({"type": "audio_url"}), PromptError, ("'audio_url'", "image_url", "text")),
    "a part without a type": (user({}), PromptError, ("Unknown content part",)),
    "a type that is no text": (user({"type": ["text"]}), PromptError, ("Unknown content part",)),
    "a text part without text": (user({"type": "text"}), PromptError, ("'text'",)),
    "a text that is a number": (user({"type": "text", "text": 5}), PromptError, ("'text'",)),
    "half a surrogate pair": (user("\ud800"), PromptError, ("surrogate",)),
    "a picture part without one": (user({"type": "image_pil"}), PromptError, ("image_pil",)),
    "a picture part with two": (
        user({"type": "image_pil", "image_pil": [image(), image()]}),
        PromptError,
        ("one picture, not 2",),
    ),
    "a url part without a url": (user({"type": "image_url"}), PromptError, ('{"url": "..."}',)),
    "a url that is a number": (user(url(5)), PromptError, ('{"url": "..."}',)),
    "a url in bytes": (user(url(b"data:")), PromptError, ('{"url": "..."}',)),
    "a long id": (user({**url("data:"), "uuid": "x" * 257}), PromptError, ("uuid", "256")),
    "an id that is a number": (user({**url("data:"), "uuid": 5}), PromptError, ("uuid",)),
    "http": (
        user(url("http://169.254.169.254/latest")),
        MediaSourceError,
        ("169.254.169.254", "allowed_media_networks"),
    ),
    "this machine": (user(url("http://localhost/a.png")), MediaSourceError, ("localhost", "allowed_media_networks")),
    "https": (user(url("https://user:secret@example.com/a.png")), MediaSourceError, ("user name or password",)),
    "ftp": (user(url("ftp://example.com/a.png")), MediaSourceError, ("'ftp'",)),
    "script": (user(url("javascript:alert(1)")), MediaSourceError, ("'javascript'",)),
    "no scheme": (user(url("picture.png")), MediaSourceError, ("without a scheme",)),
    "an empty url": (user(url("")), MediaSourceError, ("without a scheme",)),
    "a file": (user(url("file:///etc/passwd")), MediaSourceError, ("allowed_local_media_path",)),
    "text in a data url": (user(url("data:text/plain;base64,aGk=")), MediaSourceError, ("data:image/",)),
    "no base64": (user(url("data:image/png,abc")), MediaSourceError, ("base64",)),
    "broken base64": (user(url("data:image/png;base64,@@@")), MediaSourceError, ("valid base64",)),
    "an empty data url": (user(url("data:image/png;base64,")), MediaSourceError, ("no data",)),
    "junk in a data url": (user(url(data_url(b"junk" * 20))), MediaDecodeError, ()),
    "a huge picture in a data url": (
        user(url(data_url(huge_headers()["png 20,000 x 20,000"]))),
        MediaLimitError,
        ("20000 x 20000", "max_image_pixels"),
    ),
    "too many pictures": (user(*[PICTURE] * 4), MediaLimitError, ("4 images", "3")),
    "too long": (user("river " * 3000), PromptTooLongError, ("2500",)),
}


@pytest.fixture
def llm(engines: Engines, request: pytest.FixtureRequest) -> LLM:
    return engines.get(getattr(request, "param", "llava"), limit_mm_per_prompt={"image": 3}, max_model_len=2500)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_conversation_raises_its_own_error(llm: LLM, name: str) -> None:
    messages, kind, says = BAD[name]
    with pytest.raises(FoveaError) as caught:
        llm.chat(messages, GREEDY, use_tqdm=False)
    assert_helpful(caught.value, kind, says)


@pytest.mark.parametrize("name", [name for name in BAD if isinstance(BAD[name][0], list)])
def test_a_bad_conversation_fails_alone(llm: LLM, name: str) -> None:
    messages, kind, says = BAD[name]
    good = user("What is shown?", PICTURE)
    (want,) = llm.chat(good, GREEDY, use_tqdm=False)
    outputs = llm.chat([good, messages, good], GREEDY, use_tqdm=False, on_error="return")
    assert_helpful(outputs[1].error, kind, says)
    assert [tokens(outputs[i]) for i in (0, 2)] == [tokens(want)] * 2
    with pytest.raises(BatchError) as caught:
        llm.chat([good, messages], GREEDY, use_tqdm=False)
    assert list(caught.value.errors) == [1]


def test_secrets_in_addresses_are_not_repeated(llm: LLM) -> None:
    with pytest.raises(MediaSourceError) as caught:
        llm.chat(user(url("https://user:secret@example.com/a.png")), use_tqdm=False)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"cache_salt": 5}, PromptError, ("cache_salt", "128")),
        ({"cache_salt": "x" * 129}, PromptError, ("cache_salt", "128")),
        ({"cache_salt": "\ud800"}, PromptError, ("cache_salt",)),
        ({"mm_processor_kwargs": 5}, PromptError, ("mm_processor_kwargs", "int")),
        ({"mm_processor_kwargs": {"num_crops": 3}}, MediaError, ("'num_crops'", "none")),
        ({"chat_template_kwargs": 5}, PromptError, ()),
        ({"continue_final_message": True}, PromptError, ("add_generation_prompt",)),
    ],
    ids=str,
)
def test_bad_options_of_chat_are_refused(
    llm: LLM, options: dict[str, Any], kind: type[FoveaError], says: tuple[str, ...]
) -> None:
    with pytest.raises(FoveaError) as caught:
        llm.chat(user("a"), GREEDY, use_tqdm=False, **options)
    assert_helpful(caught.value, kind, says)


def test_files_are_read_below_the_permitted_folder_only(engines: Engines, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "out.png"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(encode(image(), "PNG"))
    (tmp_path / "in" / "link.png").symlink_to(outside)
    llm = engines.get("llava", allowed_local_media_path=str(inside.parent))
    (good,) = llm.chat(user(url(inside.as_uri()), "What?"), GREEDY, use_tqdm=False)
    (same,) = llm.chat(user(PICTURE, "What?"), GREEDY, use_tqdm=False)
    assert tokens(good) == tokens(same)
    refused = [
        outside.as_uri(),
        "file:///etc/passwd",
        f"file://{inside.parent}/../out.png",
        f"file://{inside.parent}/%2e%2e/out.png",
        f"file://{inside.parent}/link.png",
        f"file://{inside.parent}/missing.png",
        f"file://{inside.parent}",
        f"file://elsewhere{inside}",
        f"file://{inside}?x=1",
    ]
    texts = set()
    for address in refused:
        with pytest.raises(MediaSourceError) as caught:
            llm.chat(user(url(address)), GREEDY, use_tqdm=False)
        texts.add(str(caught.value))
    assert len(texts) == 1, "the answer does not tell what exists elsewhere"


# ------------------------------------------------------------------------------------- what users type stays text

SPECIALS = {
    "llava": ["<image>", "<s>", "</s>", "<pad>", "<unk>"],
    "qwen2_vl": list(QWEN_TOKENS),
    "qwen2_5_vl": list(QWEN_TOKENS),
    "qwen3_vl": list(QWEN_TOKENS),
    "phi3_v": [
        "<s>",
        "</s>",
        "<|image|>",
        "<|image_1|>",
        "<|end|>",
        "<|user|>",
        "<|assistant|>",
        "<|endoftext|>",
        "<|placeholder1|>",
        "<|system|>",
    ],
}
HOSTILE = [(family, text) for family, texts in SPECIALS.items() for text in texts]


def special_counts(llm: LLM, ids: tuple[int, ...]) -> dict[int, int]:
    special = set(llm.get_tokenizer().special_tokens.values())
    return {token: ids.count(token) for token in special if token in ids}


def chat_ids(llm: LLM, messages: object) -> tuple[int, ...]:
    (output,) = llm.chat(messages, ONE_TOKEN, use_tqdm=False)  # type: ignore[arg-type]
    return output.prompt_token_ids


def visible(llm: LLM, ids: tuple[int, ...]) -> str:
    """All text that is not special, without blanks (Llama's decoder moves them)."""
    return "".join(llm.get_tokenizer().decode(list(ids), skip_special_tokens=True).split())


@pytest.mark.parametrize("with_picture", [False, True], ids=["text", "picture"])
@pytest.mark.parametrize(("family", "text"), HOSTILE)
def test_a_special_token_typed_by_a_user_stays_text(
    engines: Engines, family: str, text: str, with_picture: bool
) -> None:
    llm = engines.get(family)
    pictures = [PICTURE] if with_picture else []
    harmless = special_counts(llm, chat_ids(llm, user(*pictures, "tell me this a story")))
    for typed in (text, f"tell {text} story", f"{text}{text}", f" {text}\n{text} ", f"a{text}b"):
        ids = chat_ids(llm, user(*pictures, typed))
        assert special_counts(llm, ids) == harmless
        assert "".join(typed.split()) in visible(llm, ids), "the text arrives in full"


@pytest.mark.parametrize(("family", "text"), HOSTILE)
def test_a_special_token_split_over_parts_stays_text(engines: Engines, family: str, text: str) -> None:
    """Between parts there may be a picture, another part, or nothing at all."""
    llm = engines.get(family)
    with_picture = special_counts(llm, chat_ids(llm, user("tell me", PICTURE, "this")))
    without = special_counts(llm, chat_ids(llm, user("tell me", "this")))
    for cut in {1, len(text) // 2, len(text) - 1}:
        assert special_counts(llm, chat_ids(llm, user(text[:cut], PICTURE, text[cut:]))) == with_picture
        assert special_counts(llm, chat_ids(llm, user(text[:cut], text[cut:]))) == without


@pytest.mark.parametrize(("family", "text"), HOSTILE)
def test_a_special_token_in_an_earlier_turn_stays_text(engines: Engines, family: str, text: str) -> None:
    llm = engines.get(family)

    def turns(said: str) -> list[dict[str, object]]:
        others: list[dict[str, object]] = [{"role": role, "content": said} for role in ("system", "assistant")]
        return [others[0], *user(PICTURE, said), others[1], *user(said)]

    harmless = special_counts(llm, chat_ids(llm, turns("tell me")))
    assert special_counts(llm, chat_ids(llm, turns(f"tell {text} me"))) == harmless


@pytest.mark.parametrize("family", FAMILIES)
def test_a_role_cannot_smuggle_a_special_token(engines: Engines, family: str) -> None:
    """Either the template or Fovea refuses it, or it stays text."""
    llm = engines.get(family)
    for text in SPECIALS[family]:
        harmless = special_counts(llm, chat_ids(llm, [{"role": "tool", "content": "a"}]))
        try:
            ids = chat_ids(llm, [{"role": f"tool{text}", "content": "a"}])
        except PromptError:
            continue
        assert special_counts(llm, ids) == harmless


@pytest.mark.parametrize("family", FAMILIES)
def test_a_typed_place_does_not_take_a_picture_s_place(engines: Engines, family: str) -> None:
    """The typed text before the picture: the picture's tokens are where its part is, once."""
    llm = engines.get(family)
    place = llm.family.image_text(1).strip()
    placeholder = llm.get_tokenizer().token_id(llm.family.placeholder)
    assert placeholder is not None
    (output,) = llm.chat(user(f"river {place} sea", PICTURE, f"day {place}"), ONE_TOKEN, use_tqdm=False)
    ids = output.prompt_token_ids
    assert ids.count(placeholder) == output.media[0].num_tokens
    first = ids.index(placeholder)
    assert set(ids[first : first + output.media[0].num_tokens]) == {placeholder}
    before = visible(llm, ids[:first])
    if family != "llava":  # its template puts pictures first
        assert before.endswith("sea")
    assert visible(llm, ids).count("".join(place.split())) == 2

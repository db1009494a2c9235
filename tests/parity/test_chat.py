"""chat is generate on the rendered conversation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from PIL import Image

from fovea.llm import LLM
from tests.oracle.checkpoints import picture
from tests.oracle.reference import reference
from tests.parity.support import FAMILIES, GREEDY, QWEN, Checkpoints, Engines, ask, num_decided, tokens, words

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SEE = "<|vision_start|><|image_pad|><|vision_end|>"

# A conversation of texts and pictures ("*"), and what the family's published template makes of it.
CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "one picture": [("user", "*What is shown in this picture?")],
    "text only": [("user", "Tell me a story about the river and the sea.")],
    "two pictures": [("user", "*First.*How do they differ?")],
    "three turns": [("user", "*What is shown?"), ("assistant", "a river"), ("user", "*And in this picture?")],
    "system": [("system", "You are helpful."), ("user", "What is a day?")],
}


def chat_messages(turns: list[tuple[str, str]]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    messages: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    for role, text in turns:
        parts: list[dict[str, Any]] = []
        for i, piece in enumerate(text.split("*")):
            if i:
                images.append(picture(90 + 20 * len(images), 60, len(images)))
                parts.append({"type": "image_pil", "image_pil": images[-1]})
            if piece:
                parts.append({"type": "text", "text": piece})
        messages.append({"role": role, "content": parts})
    return messages, images


def rendered(family: str, turns: list[tuple[str, str]]) -> str:
    """Written by hand from the published templates."""
    if family == "llava":
        heads = [("" if role == "system" else f"{role.upper()}: ", text) for role, text in turns]
        return "".join(
            h + "<image>\n" * t.count("*") + "".join(f"{p} " for p in t.split("*") if p) for h, t in heads
        ) + ("ASSISTANT:")
    if family in QWEN:
        start = "" if turns[0][0] == "system" else SYSTEM
        body = "".join(f"<|im_start|>{r}\n{t.replace('*', SEE)}<|im_end|>\n" for r, t in turns)
        return f"{start}{body}<|im_start|>assistant\n"
    text = "".join(f"<|{role}|>\n{text}<|end|>\n" for role, text in turns) + "<|assistant|>\n"
    pieces = text.split("*")
    return pieces[0] + "".join(f"<|image_{i}|>\n{piece}" for i, piece in enumerate(pieces[1:], 1))


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chat_equals_generate_on_the_rendered_prompt(engines: Engines, family: str, name: str) -> None:
    llm = engines.get(family)
    messages, images = chat_messages(CONVERSATIONS[name])
    prompt: dict[str, object] = {"prompt": rendered(family, CONVERSATIONS[name])}
    if images:
        prompt["multi_modal_data"] = {"image": images}
    generated = ask(llm, prompt)
    (chatted,) = llm.chat(messages, GREEDY, use_tqdm=False)
    assert chatted.prompt_token_ids == generated.prompt_token_ids
    assert tokens(chatted) == tokens(generated)
    assert chatted.prompt == prompt["prompt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_answers_as_the_reference(checkpoints: Checkpoints, engines: Engines, family: str) -> None:
    turns = [("user", "*What is shown in this picture?")]
    messages, images = chat_messages(turns)
    (output,) = engines.get(family).chat(messages, GREEDY, use_tqdm=False)
    want = reference(checkpoints.folder(family), rendered(family, turns), images)
    decided = num_decided(want.margins)
    assert list(output.prompt_token_ids) == want.token_ids
    assert tokens(output)[:decided] == want.greedy[:decided]
    assert decided > 12


@pytest.mark.parametrize("family", FAMILIES)
def test_many_conversations_are_answered_in_order(engines: Engines, family: str) -> None:
    llm = engines.get(family)
    conversations = [chat_messages(turns)[0] for turns in CONVERSATIONS.values()]
    alone = [tokens(llm.chat(conversation, GREEDY, use_tqdm=False)[0]) for conversation in conversations]
    together = llm.chat(conversations, GREEDY, use_tqdm=False)
    assert [tokens(output) for output in together] == alone


def test_content_as_text_and_as_a_text_part_are_the_same(engines: Engines) -> None:
    for family in FAMILIES:
        llm = engines.get(family)
        as_text, as_part = (_chat_ids(llm, content) for content in ("a day", [{"type": "text", "text": "a day"}]))
        assert as_text == as_part


@pytest.mark.parametrize("family", [*QWEN, "phi3_v"])
def test_the_final_message_can_be_continued(engines: Engines, family: str) -> None:
    llm = engines.get(family)
    turns = [{"role": "user", "content": "What is a day?"}, {"role": "assistant", "content": "a day is"}]
    (output,) = llm.chat(turns, GREEDY, use_tqdm=False, add_generation_prompt=False, continue_final_message=True)
    prompt = rendered(family, [("user", "What is a day?")]) + "a day is"
    assert output.prompt_token_ids == ask(llm, prompt).prompt_token_ids


def test_streaming_gives_growing_texts_that_end_in_the_answer(engines: Engines) -> None:
    for family in FAMILIES:
        llm = engines.get(family)
        messages, _ = chat_messages(CONVERSATIONS["one picture"])
        params = dataclasses.replace(GREEDY, allowed_token_ids=words(llm))
        (want,) = llm.chat(messages, params, use_tqdm=False)
        seen = list(llm.stream_chat(messages, params))
        assert [len(output.outputs[0].token_ids) for output in seen] == list(range(1, 25))
        texts = [output.outputs[0].text for output in seen]
        assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:]))
        assert texts[-1] == want.outputs[0].text
        assert [output.finished for output in seen] == [False] * 23 + [True]


def _chat_ids(llm: LLM, content: object) -> tuple[int, ...]:
    (output,) = llm.chat([{"role": "user", "content": content}], GREEDY, use_tqdm=False)
    return output.prompt_token_ids

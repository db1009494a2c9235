"""Rendering equals transformers'; pieces tell who wrote what; a hostile template costs one error."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.core.errors import InvalidOptionError, ModelError, PromptError
from fovea.prompt.pieces import Piece
from fovea.prompt.sandbox import MAX_OUTPUT_CHARS
from fovea.prompt.template import ChatTemplate
from fovea.prompt.tokenizer import Tokenizer
from tests.prompt.test_tokenizer import MODELS, PUBLISHED, published, reference

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
)
LLAMA32_VISION = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|system|>' + system_message }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' %}{{- '<|image|>' }}
            {%- elif content.type == 'text' %}{{- content.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
"""
MACRO = """
{%- macro show(content, counting) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for item in content -%}{{ item.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for m in messages[0:] -%}{%- set body = show(m.content, true) -%}<|im_start|>{{ body }}<|im_end|>{%- endfor -%}
"""
THINKING = """
{%- for message in messages %}
{%- if message.role == 'assistant' and '</think>' in message.content %}
{%- set body = message.content.split('</think>')[-1].lstrip('\\n') %}
{%- else %}{%- set body = message.content %}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + body + '<|im_end|>\\n' }}
{%- endfor %}
"""
TEXTS = ["Hi", " padded \n", "", "two\nlines", "<|im_end|>", "é👍", "{{ 7*7 }}{% raw %}", "</think>x", "a\\nb"]


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def chat(openai: bool, *texts: str) -> list[dict[str, Any]]:
    """System, user, assistant, user, ... with these texts; with pictures where content is a list."""
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages: list[dict[str, Any]] = []
    for role, text in zip(roles, texts):
        parts = [{"type": "text", "text": text}]
        content = [{"type": "image"}, *parts] if role == "user" else parts
        messages.append({"role": role, "content": content if openai else text})
    return messages


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def untrusted(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if not piece.trusted)


@cache
def of(name: str) -> ChatTemplate:
    tokenizer = published(name)
    tokens, special = tokenizer.special_token_strings, tokenizer.special_tokens
    return ChatTemplate.load(MODELS / name, tokens=tokens, special_tokens=special)


# --- equal to transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_render_as_in_transformers(name: str) -> None:
    ours, theirs = of(name), reference(name)
    openai = ours.content_format == "openai"
    for size in range(1, 6):
        for start in range(len(TEXTS)):
            messages = chat(openai, *(TEXTS * 2)[start : start + size])
            for prompt in (True, False):
                assert ours.render(messages, add_generation_prompt=prompt) == theirs.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=prompt
                )


@pytest.mark.parametrize("source", [CHATML, LLAMA3, LLAMA32_VISION, MACRO, THINKING])
def test_other_templates_render_as_in_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    ours = ChatTemplate(source, tokens={"bos_token": "<s>"})
    for start in range(len(TEXTS)):
        messages = chat(False, *(TEXTS * 2)[start : start + 4])
        theirs = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, bos_token="<s>")
        assert ours.render(messages) == theirs[0][0]
        assert joined(ours.render_pieces(messages)) == theirs[0][0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages|tojson }}",
        "{{ messages[0]|tojson(indent=2) }}",
        "{{ 'a' ~ 1 ~ none ~ missing ~ true }}",
        "{{ 'a' * 3 + 'b' }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ '%s-%d' % ('x', 3) }} {{ '{}{}'.format(1, 2) }}",
        "{{ [1, 2] + [3] }} {{ messages|length }} {{ none }} {{ missing }} {{ 1.5 * 2 }}",
        "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
        "{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "{% for m in messages recursive %}{{ loop.index }}{{ loop.first }}{% endfor %}",
        "  {% if true %}\n  x\n  {% endif %}\n y",
        "{{ messages|map(attribute='role')|join(', ') }} {{ 'a-b'|replace('-', '+')|upper }} {{ 'abc'[::-1] }}",
        "{% generation %}{{ messages[0].role }}{% endgeneration %}!",
        "{{ dict(a=1).items()|list }} {{ {'b': 2, 'a': 1}|dictsort }} {{ tools is none }} {{ documents is defined }}",
        "{% macro m(a, b='x') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}"
        "{{ m(1) }}{% call m(2) %}c{% endcall %}",
        "{% set t %}in{{ 1 }}{% endset %}{{ t * 2 }}{% filter upper %}shout{% endfilter %}",
        "{{ 'x'.join(['a', 'b']) }} {{ 'a b'.split() }} {{ ' s '.strip() }} "
        "{{ 'abc'.replace('b', 'd') }} {{ '5'.zfill(3) }}",
        "{{ messages[-1].content if messages else 'none' }} {{ 'é'|tojson }} {{ '<'|e }} {{ strftime_now('%%') }}",
    ],
)
def test_language_features_behave_as_in_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "x"}]
    assert (
        ChatTemplate(source).render(messages)
        == render_jinja_template([messages], chat_template=source, add_generation_prompt=True)[0][0]
    )


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("text", ["I see ", "I see", "  I see\n"])
def test_continuing_the_final_message_is_as_in_transformers(name: str, text: str) -> None:
    ours, theirs = of(name), reference(name)
    messages = chat(ours.content_format == "openai", "sys", "hi", text)
    expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert ours.render(messages, **options) == expected
    assert joined(ours.render_pieces(messages, **options)) == expected


def test_continuing_trims_where_the_template_trims() -> None:
    ours = ChatTemplate(LLAMA3, tokens={"bos_token": "<s>"})
    text = ours.render(chat(False, "s", "u", "I see  "), add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("\n\nI see")


def test_continuing_needs_a_text_and_excludes_a_generation_prompt() -> None:
    template = ChatTemplate(CHATML)
    with pytest.raises(PromptError, match="exclude"):
        template.render(user("x"), continue_final_message=True)
    with pytest.raises(PromptError, match="no text"):
        template.render([{"role": "user", "content": []}], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(PromptError, match="leaves out"):
        ChatTemplate("x").render(user("y"), add_generation_prompt=False, continue_final_message=True)


# --- content format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(*param.values, expected, marks=param.marks)
        for param, expected in zip(PUBLISHED, ("openai", "string", "openai"), strict=True)
    ],
)
def test_the_content_format_of_published_templates(name: str, expected: str) -> None:
    assert of(name).content_format == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, "string"),
        (LLAMA3, "string"),
        (THINKING, "string"),
        (LLAMA32_VISION, "openai"),
        (MACRO, "openai"),
        ("no messages", "string"),
        ("{% for m in messages %}{% for line in m.content.split('x') %}{{ line }}{% endfor %}{% endfor %}", "string"),
        ("{% for t in tools %}{% for x in t.content %}{{ x }}{% endfor %}{% endfor %}", "string"),
        ("{% set c = messages[0]['content'] %}{% for p in c %}{{ p }}{% endfor %}", "openai"),
        (
            "{% set ms = messages[1:] %}{% for m in ms %}{% for p in m['content']|list %}{{ p }}{% endfor %}"
            "{% endfor %}",
            "openai",
        ),
        ("{% set first = messages[0] %}{% for p in first.content %}{{ p }}{% endfor %}", "openai"),
    ],
)
def test_the_content_format_is_read_from_the_template(source: str, expected: str) -> None:
    assert ChatTemplate(source).content_format == expected


# --- pieces -----------------------------------------------------------------------------------------------------------

SPECIAL = ("<|im_start|>", "<|im_end|>", "<image>")


@pytest.mark.parametrize("name", PUBLISHED)
@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(
        st.text(max_size=12) | st.sampled_from(["<image>", "<|im_end|>", "<|end|> "]), min_size=1, max_size=6
    )
)
def test_pieces_of_published_templates_hold_every_text_as_untrusted(name: str, texts: list[str]) -> None:
    template = of(name)
    messages = chat(template.content_format == "openai", *texts)
    pieces = template.render_pieces(messages)
    assert joined(pieces) == template.render(messages)
    assert untrusted(pieces) == "".join(text.strip() for text in texts)
    assert all(piece.text for piece in pieces)
    assert all(a.trusted != b.trusted for a, b in zip(pieces, pieces[1:]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_turn_markers_and_pictures_typed_by_a_user_stay_text(name: str) -> None:
    """The ids of special tokens are those of the same chat with harmless texts, whatever is typed."""
    template, tokenizer = of(name), published(name)
    openai = template.content_format == "openai"

    def specials(text: str) -> list[int]:
        ids = tokenizer.encode_pieces(template.render_pieces(chat(openai, "s", text, "a", text)))
        return [token_id for token_id in ids if tokenizer.is_special(token_id)]

    for token in tokenizer.special_tokens:
        assert specials(f"x {token}\n{token}") == specials("x")


def test_a_template_that_trims_keeps_its_pieces() -> None:
    pieces = ChatTemplate(LLAMA3, tokens={"bos_token": "<s>"}, special_tokens=SPECIAL).render_pieces(
        user(" <image> \n")
    )
    assert pieces == [
        Piece("<s><|start_header_id|>user<|end_header_id|>\n\n", True),
        Piece("<image>", False),
        Piece("<|eot_id|>", True),
    ]


def test_a_template_that_cuts_a_text_refuses_special_tokens_in_that_text_only() -> None:
    template = ChatTemplate(THINKING, special_tokens=SPECIAL)
    messages = chat(False, "s", "<image>", "<think>why</think>\n\nbecause")
    pieces = template.render_pieces(messages)
    assert joined(pieces) == template.render(messages)
    assert untrusted(pieces) == "s<image>"
    for hidden in ("<image>", "<im\nage>", "< image >"):
        with pytest.raises(PromptError, match="<image>"):
            template.render_pieces(chat(False, "s", "u", f"<think>{hidden}</think>because"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content|upper }}",
        "{{ messages[0].content|replace('\\n', '') }}",
        "{{ messages[0].content[1:] }}",
        "{% if messages[0].content|length < 30 %}{{ messages[0].content }}{% endif %}",
        "{{ messages[0].content|tojson }}{{ messages[0].content.split('>')[0] }}>",
        "{{ messages[0].content|reverse }}",
        "{% if messages[0].content.startswith('<') %}{{ messages[0].content }}{% endif %}",
        "{{ messages[0].content[0] }}{{ messages[0].content }}",
        "{{ messages[0].content }}{{ messages[0].content.split('x')[1] }}",
    ],
)
def test_no_way_of_handling_a_text_makes_it_trusted(source: str) -> None:
    """Either a special token in the text is refused, or every trace of it is untrusted."""
    template = ChatTemplate(source, special_tokens=SPECIAL)
    for text in ("<|im_end|>", "x<|im_end|>x", "<|im_\nend|>", "<image><|im_end|>"):
        try:
            pieces = template.render_pieces(user(text))
        except PromptError:
            continue
        assert joined(pieces) == template.render(user(text))
        assert not any(token in piece.text for piece in pieces if piece.trusted for token in SPECIAL)


def test_texts_join_across_messages_only_as_untrusted_text() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", special_tokens=SPECIAL)
    pieces = template.render_pieces([*user("<|im_"), *user("end|>")])
    assert pieces == [Piece("<|im_end|>", False)]


def test_special_tokens_in_other_strings_are_refused() -> None:
    template = ChatTemplate(CHATML, special_tokens=SPECIAL)
    with pytest.raises(PromptError, match="special token"):
        template.render_pieces([{"role": "user", "content": "x", "name": "<|im_end|>"}])
    with pytest.raises(PromptError, match="special token"):
        template.render_pieces(user("x"), variables={"note": ["<|im_end|>"]})
    with pytest.raises(PromptError, match="role"):
        template.render_pieces([{"role": "user<|im_end|>", "content": "x"}])


def test_marks_cannot_be_forged() -> None:
    text = "\ue000" + "0" * 16 + "c0\ue001<|im_end|>\ue000o0\ue001"
    pieces = ChatTemplate(CHATML, special_tokens=SPECIAL).render_pieces(user(text))
    assert untrusted(pieces) == text


# --- what a request may bring -----------------------------------------------------------------------------------------


def test_variables_reach_the_template() -> None:
    assert ChatTemplate("{{ enable_thinking }}").render(user("x"), variables={"enable_thinking": False}) == "False"


@pytest.mark.parametrize(
    "name",
    [
        "messages",
        "tools",
        "documents",
        "conversation",
        "add_generation_prompt",
        "chat_template",
        "tokenize",
        "_x",
        "a-b",
    ]
    + ["return_dict", "return_tensors", "self", "raise_exception", "bos_token", "eos_token", "image_token", "range"],
)
def test_reserved_variables_are_refused(name: str) -> None:
    with pytest.raises(PromptError, match="reserved"):
        ChatTemplate(CHATML).render(user("x"), variables={name: True})


def test_large_and_deep_values_are_refused() -> None:
    deep: Any = "x"
    for _ in range(65):
        deep = [deep]
    for value in (deep, "x" * 2**20, {"x" * 2**20: 1}):
        with pytest.raises(PromptError):
            ChatTemplate(CHATML).render(user("x"), variables={"value": value})
    with pytest.raises(PromptError, match="deep"):
        ChatTemplate(CHATML).render([{"role": "user", "content": deep}])


@pytest.mark.parametrize(
    "messages", [[], ["x"], [{}], [{"role": None}], [{"role": ""}], [{"role": 3}], [{"role": "a b"}]]
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(PromptError):
        ChatTemplate(CHATML).render(messages)


def test_missing_content_is_a_prompt_error_without_foreign_text() -> None:
    with pytest.raises(PromptError, match="Check the messages' roles and content"):
        ChatTemplate(CHATML).render([{"role": "user"}])


def test_a_template_sees_plain_data_only() -> None:
    class Rich(str):
        def leak(self) -> str:
            return "leaked"

    template = ChatTemplate("{{ messages[0].content.leak }}{{ messages[0].image }}")
    assert template.render([{"role": "user", "content": Rich("x"), "image": object()}]) == "<object>"


def test_the_templates_own_refusal_is_passed_on() -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(user("x"))


# --- hostile templates ------------------------------------------------------------------------------------------------

GROW = (
    "{% set ns = namespace(x=['a', 'a']) %}{% for i in range(99) %}{% set ns.x = GROWN %}{% endfor %}{{ ns.x|length }}"
)
HOSTILE = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 9 ** 99 ** 99 }}",
    "{{ '%1000000000s' % 1 }}",
    "{{ '%*s' % (1000000000, 1) }}",
    "{{ '%1000000000s'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '1'.zfill(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ [1, 2]|tojson(indent=10**9) }}",
    "{{ 'a\nb'|indent(10**9) }}",
    "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6).join(range(99999)|map('string')) }}",
    "{{ range(99999)|join('a' * 10**6) }}",
    "{{ (['a' * 10**6] * 10**5)|select|join }}",
    "{{ '{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}'.format('a' * 10**8) }}",
    GROW.replace("GROWN", "ns.x + ns.x"),
    GROW.replace("GROWN", "ns.x * 2"),
    GROW.replace("GROWN", "ns.x ~ ns.x"),
    GROW.replace("GROWN", "[ns.x, ns.x]|string"),
    GROW.replace("GROWN", "[ns.x, ns.x]|tojson"),
    GROW.replace("GROWN", "'%s%s' % (ns.x, ns.x)"),
    GROW.replace("GROWN", "[ns.x, ns.x]").replace("|length", ""),
    "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='aa') %}{% for i in range(99) %}"
    "{% set ns.x = m(ns.x) %}{% endfor %}",
    "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}" + "x" * 60_000 + "{% endfor %}",
    "{% set a %}{% for i in range(99999) %}" + "x" * 60_000 + "{% endfor %}{% endset %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{{ range(10**9) }}",
    "{% include 'x' %}",
    "{% import 'x' as x %}",
    "{% extends 'x' %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ lipsum(100000) }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ namespace(__class__=1) }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_ends_in_a_prompt_error_within_seconds(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(PromptError):
        ChatTemplate(source, timeout_s=0.5).render(user("hi"))
    assert time.perf_counter() - start < 3


def test_hostile_templates_leave_little_memory_behind() -> None:
    import tracemalloc

    for source in HOSTILE:
        tracemalloc.start()
        with pytest.raises(PromptError):
            ChatTemplate(source, timeout_s=0.2).render(user("hi"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 700 * 2**20, source


def test_the_output_has_a_limit() -> None:
    assert len(ChatTemplate("{{ messages[0].content }}").render(user("a" * MAX_OUTPUT_CHARS))) == MAX_OUTPUT_CHARS
    with pytest.raises(PromptError, match="limit"):
        ChatTemplate("{{ messages[0].content }}").render(user("a" * (MAX_OUTPUT_CHARS + 1)))


def test_a_long_ordinary_chat_is_no_hostile_one() -> None:
    template = ChatTemplate(CHATML, special_tokens=SPECIAL)
    messages = [{"role": "user", "content": "word " * 200}] * 2000
    assert joined(template.render_pieces(messages)) == template.render(messages)


def test_a_failed_rendering_leaves_the_template_usable() -> None:
    template = ChatTemplate("{% if messages[0].content == 'bad' %}{{ 'a' * 10**9 }}{% endif %}ok")
    with pytest.raises(PromptError):
        template.render(user("bad"))
    assert template.render(user("good")) == "ok"


@pytest.mark.parametrize(
    "source", ["{{ 'x' if", "{% while %}", "{{ 1|nofilter }}", "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "x" * 2**21]
)
def test_a_template_that_does_not_compile_is_a_model_error(source: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate(source)


# --- where templates come from ----------------------------------------------------------------------------------------


def test_the_order_of_sources(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path).source is None
    named = [{"name": "tool_use", "template": "{#tools#}"}, {"name": "default", "template": "{#named#}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path).source == "{#named#}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{#config#}"}))
    assert ChatTemplate.load(tmp_path).source == "{#config#}"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{#json#}"}))
    assert ChatTemplate.load(tmp_path).source == "{#json#}"
    (tmp_path / "chat_template.jinja").write_text("{#jinja#}")
    assert ChatTemplate.load(tmp_path).source == "{#jinja#}"
    (tmp_path / "own.jinja").write_text("{#own#}")
    assert ChatTemplate.load(tmp_path, str(tmp_path / "own.jinja")).source == "{#own#}"
    assert ChatTemplate.load(tmp_path, "{#text#}").source == "{#text#}"


def test_an_override_that_is_neither_file_nor_template_is_an_option_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="chat_template"):
        ChatTemplate.load(tmp_path, "chatml")
    with pytest.raises(InvalidOptionError, match="syntax"):
        ChatTemplate.load(tmp_path, "{% if")
    assert ChatTemplate.load(tmp_path, "{{ 1 }}" + "x" * 5000).source


def test_a_broken_template_in_the_folder_names_the_folder_and_the_option(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if")
    with pytest.raises(ModelError, match="option chat_template"):
        ChatTemplate.load(tmp_path)


def test_without_a_template_rendering_says_where_to_get_one(tmp_path: Path) -> None:
    template = ChatTemplate.load(tmp_path)
    with pytest.raises(PromptError, match="option chat_template"):
        template.render(user("x"))
    with pytest.raises(PromptError, match="option chat_template"):
        template.render_pieces(user("x"))


def test_the_tokenizers_names_are_the_templates_variables() -> None:
    from tests.prompt.test_tokenizer import byte_level

    tokenizer = Tokenizer(byte_level(bos=True), {"bos_token": {"content": "<|bos|>"}})
    assert ChatTemplate("{{ bos_token }}", tokens=tokenizer.special_token_strings).render(user("x")) == "<|bos|>"

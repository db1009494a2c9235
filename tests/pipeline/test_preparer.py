"""A form becomes a request, judged before it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fovea.core.errors import (
    FoveaError,
    MediaError,
    MediaLimitError,
    MediaSourceError,
    PromptTooLongError,
    SamplingError,
)
from fovea.core.params import SamplingParams
from fovea.llm import LLM
from fovea.media.load import Fetched
from fovea.pipeline import pictures
from fovea.pipeline import preparer as preparer_module
from fovea.prompt.forms import parse_prompt
from tests.bad_input.harness import image
from tests.oracle.checkpoints import CASES
from tests.parity.support import FAMILIES, QWEN, Checkpoints, Engines, question
from tests.pipeline.support import chat, data_url, part, png, prepare, preparer, run


@pytest.fixture
def llm(engines: Engines) -> LLM:
    return engines.get("llava")


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_and_media_belong_together(engines: Engines, family: str) -> None:
    llm = engines.get(family)
    request = prepare(llm, question(CASES[family][1])).request
    placeholder = llm.get_tokenizer().token_id(llm.family.placeholder)
    assert len(request.spans) == len(request.media) == 3
    for span, item in zip(request.spans, request.media, strict=True):
        assert span.length == item.num_tokens
        assert set(request.token_ids[span.start : span.end]) == {placeholder}
        assert item.canvas is not None or item.pixels is not None
        assert len(item.key) == 32
    assert request.token_ids.count(placeholder or -1) == sum(span.length for span in request.spans)
    assert (request.positions is None) == (family not in QWEN)


def test_the_key_of_a_picture_covers_all_that_changes_its_rows(engines: Engines) -> None:
    llm = engines.get("qwen2_vl")
    prompt = {"prompt": CASES["qwen2_vl"][0].prompt, "multi_modal_data": {"image": image()}}
    changed: list[dict[str, Any]] = [
        {},
        {"multi_modal_data": {"image": image(2)}},
        {"cache_salt": "a"},
        {"cache_salt": "b"},
        {"multi_modal_uuids": {"image": ["a"]}},
        {"mm_processor_kwargs": {"max_pixels": 784 * 4}},
    ]
    keys = [prepare(llm, {**prompt, **change}).request.media[0].key for change in changed]
    assert len(set(keys)) == len(keys)
    assert prepare(llm, prompt).request.media[0].key == keys[0]


def test_the_version_of_a_family_is_part_of_the_key(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare(llm, question(CASES["llava"][0])).request.media[0].key
    monkeypatch.setattr(type(llm.family), "version", 2)
    assert prepare(llm, question(CASES["llava"][0])).request.media[0].key != before


def test_nothing_is_decoded_before_all_is_judged(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three pictures is over a limit: the first two were not decoded."""
    llm = engines.get("llava", max_image_pixels=10_000)
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("a picture was decoded"))
    prompt = {"prompt": "<image><image><image>", "multi_modal_data": {"image": [image(), image(), image(1, 200, 200)]}}
    with pytest.raises(MediaLimitError, match="200 x 200"):
        prepare(llm, prompt)


def test_stop_ids_are_the_model_s_and_the_request_s(llm: LLM) -> None:
    assert prepare(llm, "a").request.stop_token_ids == {2}
    assert prepare(llm, "a", stop_token_ids=[7]).request.stop_token_ids == {2, 7}
    assert prepare(llm, "a", stop_token_ids=[7], ignore_eos=True).request.stop_token_ids == {7}


def test_bad_words_are_banned_at_the_start_and_after_a_space(engines: Engines) -> None:
    tokenizer = engines.get("qwen2_vl").get_tokenizer()
    words = prepare(engines.get("qwen2_vl"), "a", bad_words=["river", " sea"]).request.bad_words
    assert {tokenizer.decode(list(word)) for word in words} == {"river", " river", " sea"}


def test_importing_the_pipeline_leaves_torch_out() -> None:
    """A server's front plans requests without an engine."""
    code = "import sys, fovea.pipeline.preparer, fovea.pipeline.collector; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ counting, lengths


@pytest.mark.parametrize("family", FAMILIES)
def test_a_count_is_what_a_request_has_and_decodes_nothing(
    checkpoints: Checkpoints, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = preparer(checkpoints, family)
    form = parse_prompt(question(CASES[family][1]))
    prepared = run(made, form)
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("a picture was decoded"))
    counted = made.count(form)
    assert counted.token_ids == prepared.request.token_ids
    assert counted.spans == prepared.request.spans
    assert [report.num_tokens for report in counted.reports] == [report.num_tokens for report in prepared.reports]


def test_a_prompt_that_is_too_long_for_the_model_is_counted_and_not_prepared(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", max_model_len=8)
    form = parse_prompt("river sea day " * 8)
    with pytest.raises(PromptTooLongError) as caught:
        run(made, form)
    assert caught.value.code == "context_length_exceeded"
    assert len(made.count(form).token_ids) > 8


def test_another_length_shares_tokenizer_and_template(checkpoints: Checkpoints) -> None:
    long = preparer(checkpoints, "llava")
    short = long.for_engine(4)
    assert short.tokenizer is long.tokenizer
    assert short.template is long.template
    form = parse_prompt("river sea day river sea day")
    run(long, form)
    with pytest.raises(PromptTooLongError, match="max_model_len is 4"):
        run(short, form)


def test_the_time_of_the_prompt_and_of_its_pictures_are_told_apart(llm: LLM) -> None:
    prepared = prepare(llm, question(CASES["llava"][1]))
    assert prepared.prompt_s > 0
    assert prepared.media_s > 0
    spent = sum(report.decode_s + report.resize_s for report in prepared.reports)
    assert 0 < spent <= prepared.media_s, "one thread: the pictures' times are parts of the whole"


# ------------------------------------------------------------------------------------------------ limits of a request


def test_a_server_limits_what_the_pictures_of_a_request_have_together(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("a picture was decoded"))
    url = data_url(png(100, 80))
    num_bytes = len(png(100, 80))
    for options, code in (
        ({"max_request_pixels": 3 * 8000 - 1}, "image_too_many_pixels"),
        ({"max_request_media_bytes": 3 * num_bytes - 1}, "media_too_large"),
    ):
        made = preparer(checkpoints, "llava", server=True, **options)
        with pytest.raises(MediaLimitError, match=f"Picture 3: .*{next(iter(options))}") as caught:
            run(made, chat(made, part(url), part(url), part(url)))
        assert (caught.value.code, caught.value.param) == (code, "messages.0.content.2.image_url")


def test_a_request_at_its_limits_is_served(checkpoints: Checkpoints) -> None:
    data = png(100, 80)
    made = preparer(
        checkpoints, "llava", server=True, max_request_pixels=3 * 8000, max_request_media_bytes=3 * len(data)
    )
    assert len(run(made, chat(made, *[part(data_url(data))] * 3)).reports) == 3


def test_a_program_s_own_job_may_be_of_any_size(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", max_image_pixels=8000)
    assert len(run(made, chat(made, *[part(data_url(png(100, 80)))] * 4)).reports) == 4


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = preparer(checkpoints, "llava", max_model_len=64)
    monkeypatch.setattr(preparer_module, "tokenize", None)
    with pytest.raises(PromptTooLongError, match="tokens or more; max_model_len 64") as caught:
        run(made, parse_prompt("\U0001f468" * 100_000))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(PromptTooLongError, match="allows 256 here"):
        made.count(parse_prompt("\U0001f468" * 100_000))


def test_the_limit_on_a_user_s_text_is_not_applied_to_the_rendered_template(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", server=True, max_text_chars=1)
    assert run(made, chat(made, {"type": "text", "text": "a"})).request.token_ids


def test_min_tokens_must_fit_behind_the_prompt(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", max_model_len=64)
    form = parse_prompt("a b c")
    room = 64 - len(run(made, form).request.token_ids)
    made.prepare(form, SamplingParams(max_tokens=None, min_tokens=room), "r", 0.0)
    with pytest.raises(SamplingError, match=f"{room} tokens of room") as caught:
        made.prepare(form, SamplingParams(max_tokens=None, min_tokens=room + 1), "r", 0.0)
    assert (caught.value.code, caught.value.param) == ("above_max_value", "min_tokens")


def test_too_many_pictures_have_their_own_code(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", limit_mm_per_prompt={"image": 1})
    with pytest.raises(MediaLimitError) as caught:
        run(made, chat(made, part("data:1"), part("data:2")))
    assert caught.value.code == "too_many_media_items"


def test_clients_of_a_server_lower_its_pixels_and_never_raise_them(checkpoints: Checkpoints) -> None:
    options: dict[str, Any] = {"mm_processor_kwargs": {"max_pixels": 784 * 8}}
    server, program = (preparer(checkpoints, "qwen2_vl", server=s, **options) for s in (True, False))
    url = data_url(png(200, 200))
    lower = chat(server, part(url), processor_kwargs={"max_pixels": 784 * 4})
    higher = chat(server, part(url), processor_kwargs={"max_pixels": 784 * 16})
    assert run(server, lower).reports[0].num_tokens == 4
    assert run(program, higher).reports[0].num_tokens == 16
    with pytest.raises(MediaError, match="permits up to 6,272") as caught:
        run(server, higher)
    assert (caught.value.code, caught.value.param) == ("above_max_value", "mm_processor_kwargs")


@pytest.mark.parametrize(
    ("kwargs", "code"), [({"max_pixel": 800}, "unsupported_value"), ({"max_pixels": 0}, "invalid_value")]
)
def test_processor_options_of_a_request_have_codes(checkpoints: Checkpoints, kwargs: Any, code: str) -> None:
    made = preparer(checkpoints, "qwen2_vl")
    with pytest.raises(MediaError) as caught:
        run(made, chat(made, part(data_url(png(30, 30))), processor_kwargs=kwargs))
    assert caught.value.code == code


# ------------------------------------------------------------------------------------------------ where a fault is


def test_a_fault_of_a_picture_names_the_picture_and_its_place(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava")
    good = part(data_url(png(20, 20)))
    for bad, code in (
        ("data:image/png;base64,@@@@", "invalid_data_url"),
        ("data:image/png;base64,AAAA", "unsupported_image_format"),
        (data_url(png(20, 20)[:60]), "invalid_image"),
        ("ftp://example.org/a.png", "media_url_not_allowed"),
        ("file:///etc/passwd", "media_url_not_allowed"),
        ("http://127.0.0.1/a.png", "media_url_not_allowed"),
    ):
        with pytest.raises(MediaError, match="^Picture 2: ") as caught:
            run(made, chat(made, good, part(bad)))
        assert (caught.value.code, caught.value.param) == (code, "messages.0.content.1.image_url")


def test_a_single_picture_of_a_program_needs_no_number(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava")
    with pytest.raises(MediaError, match="^The data is not a picture") as caught:
        run(made, parse_prompt({"prompt": "<image>", "multi_modal_data": {"image": b"none"}}))
    assert caught.value.param is None


# ------------------------------------------------------------------------------------------------ fetched elsewhere


def test_what_was_fetched_elsewhere_is_used_and_timed(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fovea.media.load.fetch_bytes", lambda *_: pytest.fail("it dialled"))
    made = preparer(checkpoints, "llava")
    url, data = "https://example.org/a.png", png(40, 30)
    prepared = run(made, chat(made, part(url), part(url)), {url: Fetched(data, 0.25)})
    first, second = prepared.reports
    assert (first.fetch_s, first.num_bytes, first.original_width_px) == (0.25, len(data), 40)
    assert second.fetch_s == 0.0, "it was fetched once"
    assert prepared.request.media[0].key == prepared.request.media[1].key


def test_what_was_not_fetched_is_never_dialled(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fovea.media.load.fetch_bytes", lambda *_: pytest.fail("it dialled"))
    made = preparer(checkpoints, "llava")
    form = chat(made, part("https://example.org/a.png"))
    for attempt in (lambda: run(made, form, {}), lambda: made.count(form, fetched={})):
        with pytest.raises(MediaSourceError, match="was not fetched") as caught:
            attempt()
        assert caught.value.code == "media_fetch_failed"


def test_fetched_bytes_are_within_the_limit_too(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava", max_image_bytes=100)
    url = "https://example.org/a.png"
    with pytest.raises(MediaLimitError) as caught:
        run(made, chat(made, part(url)), {url: Fetched(b"x" * 101, 0.0)})
    assert caught.value.code == "media_too_large"


def test_files_are_read_by_whoever_prepares(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(40, 30))
    made = preparer(checkpoints, "llava", allowed_local_media_path=str(tmp_path))
    form = chat(made, part(f"file://{tmp_path}/a.png"))
    assert run(made, form, {}).reports[0].original_width_px == 40


def test_every_refusal_here_is_the_request_s_own(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "llava")
    for prompt in ([10**9], "<image>", []):
        with pytest.raises(FoveaError) as caught:
            run(made, parse_prompt(prompt))
        assert caught.value.status == 400


def test_a_pixel_cap_of_the_engine_s_device_is_kept_and_shares_what_is_loaded(checkpoints: Checkpoints) -> None:
    made = preparer(checkpoints, "qwen2_vl")
    capped = made.for_engine(500, pixel_cap=28 * 28 * 4)
    assert capped.tokenizer is made.tokenizer
    assert capped.for_engine(500).family is capped.family
    assert made.for_engine(400, pixel_cap=28 * 28 * 4).family is capped.family
    form = chat(made, part(data_url(png(300, 300))))
    assert run(made, form).reports[0].num_tokens > 4
    assert run(capped, form).reports[0].num_tokens <= 4
    assert run(made.for_engine(500), form).reports[0].num_tokens == run(made, form).reports[0].num_tokens

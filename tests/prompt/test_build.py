"""From a form to token ids and spans: one place for each picture, and text that is only text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fovea.core.errors import PlaceholderError, PromptError
from fovea.core.types import ROW, MediaSpan
from fovea.families.base import Mark
from fovea.families.registry import load_family
from fovea.prompt.build import PictureRun, SlottedPrompt, expand, picture_run, placeholder_token, tokenize
from fovea.prompt.forms import MediaInput, PromptForm
from fovea.prompt.pieces import Piece
from fovea.prompt.tokenizer import Tokenizer
from tests.parity.support import Checkpoints


class Folder:
    def __init__(self, folder: Path) -> None:
        self.family = load_family(folder)
        self.tokenizer = Tokenizer.load(folder)
        self.placeholder = placeholder_token(self.family, self.tokenizer)

    def ids(self, *pieces: tuple[str, bool], pictures: int = 0) -> SlottedPrompt:
        media = tuple(MediaInput("picture", None) for _ in range(pictures))
        form = PromptForm(tuple(Piece(text, trusted) for text, trusted in pieces), media=media)
        return tokenize(form, self.family, self.tokenizer)


@pytest.fixture(scope="module")
def llava(checkpoints: Checkpoints) -> Folder:
    return Folder(checkpoints.folder("llava"))


@pytest.fixture(scope="module")
def phi(checkpoints: Checkpoints) -> Folder:
    return Folder(checkpoints.folder("phi3_v"))


@pytest.fixture(scope="module")
def qwen(checkpoints: Checkpoints) -> Folder:
    return Folder(checkpoints.folder("qwen2_vl"))


def test_each_place_is_repeated_to_its_picture_s_length() -> None:
    prompt = SlottedPrompt((1, 99, 2, 99, 99, 3), (1, 3, 4))
    ids, spans = expand(prompt, [PictureRun(3), PictureRun(1), PictureRun(2)])
    assert ids == (1, 99, 99, 99, 2, 99, 99, 99, 3)
    assert spans == (MediaSpan(1, 3), MediaSpan(5, 1), MediaSpan(6, 2))


def test_text_around_a_picture_and_between_its_rows_is_put_there() -> None:
    run = PictureRun(4, shown=(ROW, 7, ROW, ROW), before=(5, 6), after=(8,))
    ids, spans = expand(SlottedPrompt((1, 99, 2, 99), (1, 3)), [run, PictureRun(1)])
    assert ids == (1, 5, 6, 99, 7, 99, 99, 8, 2, 99)
    assert spans == (MediaSpan(3, 4), MediaSpan(9, 1))


def test_ids_that_a_processor_expanded_are_left_as_they_are() -> None:
    run = PictureRun(4, shown=(ROW, 7, ROW, ROW), before=(5, 6), after=(8,))
    marked = PictureRun(3, shown=(40, ROW, 41), before=(5,))
    ids: tuple[int, ...] = (1, 5, 40, 99, 41, 5, 40, 99, 41)
    found = expand(SlottedPrompt(ids, (3, 7), is_expanded=True), [marked, marked])
    assert found == (ids, (MediaSpan(2, 3), MediaSpan(6, 3)))
    ids = (1, 5, 6, 99, 7, 99, 99, 8, 99, 99, 2)
    slots = tuple(i for i, token in enumerate(ids) if token == 99)
    prompt = SlottedPrompt(ids, slots, is_expanded=True)
    assert expand(prompt, [run, PictureRun(2)]) == (ids, (MediaSpan(3, 4), MediaSpan(8, 2)))
    for wrong in ([run], [run, PictureRun(1)], [PictureRun(2), run], [run, run], [run, PictureRun(2), PictureRun(1)]):
        with pytest.raises(PlaceholderError):
            expand(prompt, wrong)


class Rows:
    """A family of which only the layout is asked for."""

    name = "Rows"

    def __init__(self, *layout: int | str | Mark) -> None:
        self.layout = layout

    def image_layout(self, grid: tuple[int, int, int], num_rows: int) -> tuple[int | str | Mark, ...]:
        return self.layout


def test_a_layout_becomes_a_run(llava: Folder) -> None:
    def run(*layout: int | str | Mark, rows: int) -> PictureRun:
        return picture_run(Rows(*layout), llava.tokenizer, (1, 1, rows), rows)  # type: ignore[arg-type]

    bos, eos = (llava.tokenizer.token_id(text) for text in ("<s>", "</s>"))
    assert bos is not None
    assert eos is not None
    assert run(2, 3, rows=5) == PictureRun(5)
    span = (ROW, ROW, bos, ROW)
    assert run("<s>", "</s>", 2, "<s>", 1, "</s>", rows=3) == PictureRun(4, span, span, (bos, eos), (eos,))
    around = PictureRun(3, before=(bos,), after=(eos,))
    assert run("<s>", 3, "</s>", rows=3) == around, "what is around it is not in its span"
    assert run(Mark("<s>"), 2, Mark("</s>"), rows=4) == PictureRun(4, shown=(bos, ROW, ROW, eos))
    with pytest.raises(AssertionError, match="another number of rows"):
        run(2, rows=3)


def test_without_pictures_nothing_changes() -> None:
    assert expand(SlottedPrompt((1, 2), ()), []) == ((1, 2), ())


def test_a_trusted_place_counts_and_a_typed_one_does_not(llava: Folder, qwen: Folder) -> None:
    for folder, text in ((llava, "<image>"), (qwen, "<|image_pad|>")):
        got = folder.ids(("river ", True), (text, True), (f" and {text} sea", False), pictures=1)
        assert len(got.slots) == 1
        assert got.token_ids[got.slots[0]] == folder.placeholder
        with pytest.raises(PlaceholderError, match="0 places.*1 were given"):
            folder.ids((f"river {text}", False), pictures=1)


def test_phi_tags_count_in_trusted_text_only_and_in_order(phi: Folder) -> None:
    got = phi.ids(("a<|image_1|>b", True), ("<|image_7|>", False), ("c<|image_2|>", True), pictures=2)
    assert [got.token_ids[slot] for slot in got.slots] == [phi.placeholder] * 2
    assert got.token_ids.count(1) == 3, "each piece of text between pictures has its own BOS"
    for tags in ("<|image_2|>", "<|image_1|><|image_1|>", "<|image_2|><|image_1|>", "<|image_0|>"):
        with pytest.raises(PlaceholderError, match="1, 2, 3"):
            phi.ids((tags, True), pictures=tags.count("image"))


def test_phi_reads_a_typed_placeholder_token_as_text(phi: Folder) -> None:
    assert phi.placeholder not in phi.ids(("a <|image|> b", False)).token_ids


def test_bos_is_put_in_front_once(llava: Folder, phi: Folder, qwen: Folder) -> None:
    for folder in (llava, phi):
        assert folder.ids(("river", True)).token_ids.count(1) == 1
        assert folder.ids(("<s>river", True)).token_ids.count(1) == 1
        typed = folder.ids(("<s>river", False)).token_ids
        assert typed[0] == 1
        assert typed.count(1) == 1, "a typed BOS is text; the real one is still put in front"
        assert len(typed) > len(folder.ids(("<s>river", True)).token_ids)
    assert qwen.ids(("river", True)).token_ids == tuple(qwen.tokenizer.encode("river"))


def test_an_empty_prompt_is_refused(qwen: Folder) -> None:
    for pieces in ((), (("", True),)):
        with pytest.raises(PromptError, match="empty"):
            qwen.ids(*pieces)


def test_ids_are_checked_against_the_vocabulary(llava: Folder) -> None:
    size = llava.family.spec.decoder.vocab_size
    for wrong in (-1, size, 2**70):
        with pytest.raises(PromptError, match=rf"Token id {wrong} .*permitted: 0 to {size - 1}"):
            tokenize(PromptForm(None, (1, wrong)), llava.family, llava.tokenizer)
    form = PromptForm(None, (1, llava.placeholder, 5), media=(MediaInput("picture", None),))
    assert tokenize(form, llava.family, llava.tokenizer) == SlottedPrompt((1, llava.placeholder, 5), (1,))
    expanded = replace(form, token_ids=(1, llava.placeholder, llava.placeholder))
    assert tokenize(expanded, llava.family, llava.tokenizer).is_expanded
    with pytest.raises(PlaceholderError, match="2 places.*0 were given"):
        tokenize(replace(expanded, media=()), llava.family, llava.tokenizer)


def test_a_tokenizer_of_another_model_is_refused(llava: Folder, qwen: Folder) -> None:
    with pytest.raises(PromptError, match="no '<image>'.*LlavaForConditionalGeneration"):
        placeholder_token(llava.family, qwen.tokenizer)

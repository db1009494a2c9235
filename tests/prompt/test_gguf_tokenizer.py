"""The tokenizer in a GGUF file's metadata reads as the tokenizer.json with the same vocabulary does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

gguf = pytest.importorskip("gguf")

from fovea.core.errors import ModelError, UnsupportedModelError  # noqa: E402
from fovea.prompt.tokenizer import Tokenizer  # noqa: E402
from tests.oracle.gguf_files import add_tokenizer, write  # noqa: E402
from tests.prompt.test_tokenizer import CORPUS, MODELS, folder_with, sentencepiece  # noqa: E402

# As Llama 3, Qwen2 and Mistral NeMo publish them in tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}"
    r"\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = (
    "abcXYZ 0123456789\n\t  .,;:!?'\"-_()[]{}<>|ßéüñ東京日本語한국어عربىрус½²Ⅷ٣४🙂👩\u200d\u00a0\u200b'sIt'll e\u0301"
)
LEARNED = "the The THE 123 12 1234 's It's it'll  two  blanks \n\n\t東京 日本 e\u0301 é éa ß 🙂 -- === !!! I'M (x)"


def split_by(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# The name in the file, what splits text in tokenizer.json, and whether text is composed first.
SPLITTERS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": split_by(LLAMA3),
    "qwen2": split_by(LLAMA3.replace("{1,3}", "")),
    "tekken": split_by(TEKKEN),
    "default": split_by(
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        "[0-9][0-9][0-9]",
    ),
}


def texts() -> list[str]:
    rng = random.Random(5)
    mixed = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 50))) for _ in range(300)]
    anything = ["".join(chr(rng.choice([rng.randrange(1, 0xD000), rng.randrange(0xE000, 0x20000)])) for _ in range(20))]
    return [*CORPUS, LEARNED, "<|go|>a<|go|> <tool>b</tool> <|end|>", *mixed, *anything * 20]


def learned(name: str) -> str:
    """A tokenizer.json with merges that cross what other patterns would cut."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    backend.pre_tokenizer = SPLITTERS[name]
    backend.normalizer = normalizers.NFC() if name == "qwen2" else None
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([LEARNED] * 20, trainer)
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|go|>", "<|end|>")]
    backend.add_tokens([*special, AddedToken("<tool>", special=False, normalized=False)])
    return str(backend.to_str())


def as_gguf(folder: Path, pre: str | None, **more: Any) -> Path:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    add_tokenizer(writer, folder, pre=pre)
    for key, value in more.items():
        getattr(writer, key)(value)
    write(writer)
    return path


@pytest.mark.parametrize("name", SPLITTERS)
def test_byte_level_bpe_gives_the_ids_of_tokenizer_json(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, learned(name), eos_token="<|end|>", bos_token="<|go|>")
    theirs, ours = Tokenizer.load(folder), Tokenizer.load(as_gguf(folder, name, add_add_bos_token=False))
    assert_equal(ours, theirs)
    assert len({tuple(ours.encode(text)) for text in texts()}) > 300
    assert dict(ours.special_token_strings) == dict(theirs.special_token_strings)
    assert ours.is_byte_level == theirs.is_byte_level


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_with_scores_give_the_ids_of_tokenizer_json(tmp_path: Path, prefix: bool) -> None:
    definition = json.loads(sentencepiece())
    definition["model"]["merges"] = [["▁", "a"], ["a", "b"], ["▁", "▁"], ["h", "i"]]
    definition["added_tokens"] = [t for t in definition["added_tokens"] if t["content"] != "<|end|>"]
    if not prefix:
        del definition["normalizer"]["normalizers"][0]
        del definition["decoder"]["decoders"][3]
    folder = folder_with(tmp_path, json.dumps(definition), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    more = {"add_add_space_prefix": prefix, "add_unk_token_id": 0}
    theirs, ours = Tokenizer.load(folder), Tokenizer.load(as_gguf(folder, None, **more))
    assert_equal(ours, theirs)
    assert ours.encode("ab")[0] == ours.bos_id == 1


PUBLISHED = [
    pytest.param(name, pre, marks=pytest.mark.skipif(not (MODELS / name).is_dir(), reason="needs ../shared/models"))
    for name, pre in (("llava-1.5-7b-hf", None), ("Qwen2-VL-2B-Instruct", "qwen2"))
]


@pytest.mark.parametrize(("name", "pre"), PUBLISHED)
def test_published_vocabularies_give_the_ids_of_tokenizer_json(tmp_path: Path, name: str, pre: str | None) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((MODELS / name / file).read_bytes())
    theirs, ours = Tokenizer.load(tmp_path), Tokenizer.load(as_gguf(tmp_path, pre))
    assert_equal(ours, theirs)


def assert_equal(ours: Tokenizer, theirs: Tokenizer) -> None:
    for text in texts():
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, parse_special=False) == theirs.encode(text, parse_special=False), text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text
    assert dict(ours.special_tokens) == dict(theirs.special_tokens)
    assert ours.vocab_size == theirs.vocab_size


def test_bos_and_eos_stand_around_a_text_where_the_file_says_so(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, learned("smollm"), eos_token="<|end|>", bos_token="<|go|>")
    ours = Tokenizer.load(as_gguf(folder, "smollm", add_add_bos_token=True, add_add_eos_token=True))
    ids = ours.encode("the", add_special_tokens=False)
    assert ours.encode("the") == [ours.bos_id, *ids, ours.eos_id]


def test_unused_tokens_are_nobodys(tmp_path: Path) -> None:
    model = json.loads(learned("smollm"))["model"]
    path, vocab = tmp_path / "model.gguf", model["vocab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*sorted(vocab, key=lambda text: int(vocab[text])), "[PAD9]"])
    writer.add_token_types([*[1] * len(vocab), 5])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    write(writer)
    ours = Tokenizer.load(path)
    assert not ours.has_id(len(vocab))
    assert len(vocab) not in ours.encode("[PAD9] a")
    assert ours.decode([len(vocab)]) == ""


def test_a_file_without_a_pattern_is_read_by_the_default_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_with(tmp_path, learned("default"))
    ours = Tokenizer.load(as_gguf(folder, ""))
    assert "does not say how its tokenizer splits text" in caplog.text
    assert_equal(ours, Tokenizer.load(folder))


def bad(path: Path, **changes: Any) -> Path:
    """A vocabulary of three tokens with values replaced; None leaves one out."""
    values = {"model": "gpt2", "pre": "smollm", "list": ["a", "b", "ab"], "types": [1, 1, 1], "merges": ["a b"]}
    writer = gguf.GGUFWriter(str(path), "llama")
    adders = {
        "model": writer.add_tokenizer_model,
        "pre": writer.add_tokenizer_pre,
        "list": writer.add_token_list,
        "types": writer.add_token_types,
        "merges": writer.add_token_merges,
        "scores": writer.add_token_scores,
        "bos": writer.add_bos_token_id,
        "begin": writer.add_add_bos_token,
        "squeeze": writer.add_remove_extra_whitespaces,
    }
    for key, value in {**values, **changes}.items():
        if value is not None:
            adders[key](value)
    write(writer)
    return path


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model": None}, ModelError, "tokenizer.ggml.model"),
        ({"list": None}, ModelError, "tokenizer.ggml.tokens"),
        ({"types": None}, ModelError, "tokenizer.ggml.token_type"),
        ({"merges": None}, ModelError, "tokenizer.ggml.merges"),
        ({"model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"pre": "deepseek-coder"}, UnsupportedModelError, "'deepseek-coder'"),
        ({"list": [1, 2, 3]}, ModelError, "no list of texts"),
        ({"list": ["a", "b", "a"]}, ModelError, "'a' twice"),
        ({"list": ["a", "b", "x" * 5000]}, ModelError, "2,048 characters"),
        ({"types": [1, 1]}, ModelError, "2 types of tokens"),
        ({"types": ["1", "1", "1"]}, ModelError, "no list of numbers"),
        ({"merges": ["a c"]}, ModelError, "merge 0, 'a c'"),
        ({"merges": ["ab"]}, ModelError, "merge 0, 'ab'"),
        ({"bos": 3}, ModelError, "bos_token_id' is 3"),
        ({"begin": True}, ModelError, "bos_token_id"),
        ({"model": "llama", "scores": None, "merges": None}, ModelError, "tokenizer.ggml.scores"),
        ({"model": "llama", "scores": [0.0]}, ModelError, "1 scores"),
        ({"model": "llama", "scores": [0.0] * 3, "squeeze": True}, UnsupportedModelError, "remove_extra_whitespaces"),
    ],
)
def test_what_a_vocabulary_lacks_or_contradicts_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], kind: type[ModelError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        Tokenizer.load(bad(tmp_path / "bad.gguf", **changes))
    assert says in str(caught.value)

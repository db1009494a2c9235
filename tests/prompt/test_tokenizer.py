"""Token ids equal transformers'; special tokens come only from where they may; hostile files and texts are refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from fovea.core.errors import ModelError, ModelNotFoundError, PromptError
from fovea.prompt.tokenizer import Tokenizer

MODELS = Path(__file__).parents[3] / "shared" / "models"
PUBLISHED = [
    pytest.param(name, marks=pytest.mark.skipif(not (MODELS / name).is_dir(), reason="needs ../shared/models"))
    for name in ("llava-1.5-7b-hf", "Phi-3.5-vision-instruct", "Qwen2-VL-2B-Instruct")
]
CORPUS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two spaces, a\ttab and\n\n  new lines \r\n",
    "The quick brown fox's 12345 jumps; don't!",
    "def f(x):\n    return x ** 2  # 平方\n",
    "Größe naïve café e\u0301 \u00e9 Å",
    "图片里有什么？这是一只猫。",
    "日本語のテキスト、한국어 텍스트, العربية",
    "👍🏽👩‍👩‍👧 flags 🇨🇭 \u200d\u200b",
    "\x00\x01\x7f \ufffd \ue000",
    "USER: <image>\nWhat is it? ASSISTANT:",
    "<|user|>\n<|image_1|>\nWhat is shown?<|end|>\n<|assistant|>\n",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] x [/INST] y </s> <unk><pad>",
    "<|im_end|<|im_end|>|> < |im_end|> <|end|>   \n after",
    "▁▁ ▁a",
    "aaaa" * 500,
]


def byte_level(**special: bool) -> str:
    """A byte-level tokenizer.json: all bytes, a few merges, and added tokens with their special flag."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("Ġ", "h"), ("\u00f0", "\u0141")]
    words = alphabet + [left + right for left, right in merges]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(f"<|{name}|>", special=flag, normalized=False) for name, flag in special.items()])
    return str(backend.to_str())


def sentencepiece(*, first_only: bool = False) -> str:
    """A Llama-like tokenizer.json: byte fallback, a BOS, and the prefix space everywhere or at the start only."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehilmnostuwxyz.,<>|/_"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "▁"), ("h", "i")]
    words += [left + right for left, right in merges]
    vocab = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first_only:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(strip)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True)])
    return str(backend.to_str())


@cache
def published(name: str) -> Tokenizer:
    return Tokenizer.load(MODELS / name)


@cache
def reference(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODELS / name, trust_remote_code=False)


def folder_with(tmp_path: Path, definition: str, **config: Any) -> Path:
    (tmp_path / "tokenizer.json").write_text(definition, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


# --- equal to transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers_give_the_ids_and_texts_of_transformers(name: str) -> None:
    ours, theirs = published(name), reference(name)
    for text in [*CORPUS, " ".join(CORPUS)]:
        expected = theirs(text).input_ids
        assert ours.encode(text) == expected
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
        for skip in (True, False):
            assert ours.decode(expected, skip_special_tokens=skip) == theirs.decode(expected, skip_special_tokens=skip)
    assert ours.vocab_size == len(theirs)
    assert dict(ours.special_token_strings) == theirs.special_tokens_map
    assert (ours.bos_token, ours.bos_id) == (theirs.bos_token, theirs.bos_token_id)
    assert (ours.eos_token, ours.eos_id) == (theirs.eos_token, theirs.eos_token_id)
    assert ours.pad_token == theirs.pad_token


@pytest.mark.parametrize("name", PUBLISHED)
def test_plain_reading_is_that_of_split_special_tokens(name: str) -> None:
    ours, theirs = published(name), reference(name)
    for text in CORPUS:
        assert ours.encode(text, parse_special=False) == theirs(text, split_special_tokens=True).input_ids


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"pad_token": "<|new|>"},
        {"extra_special_tokens": {"image_token": "<|soft|>"}},
        {"added_tokens_decoder": {"259": {"content": "<|late|>", "special": False}}},
    ],
)
def test_what_the_config_adds_is_added_as_transformers_does(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    named = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    folder = folder_with(tmp_path, byte_level(bos=True, eos=True, soft=False), **named, **config)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("hello", "<|bos|>a<|new|><|soft|>b<|late|> c<|eos|>"):
        assert ours.encode(text) == theirs(text).input_ids
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_token_with_a_role_is_special_whatever_the_file_says(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, byte_level(eos=False), eos_token="<|eos|>"))
    assert tokenizer.eos_id not in tokenizer.encode("<|eos|>", parse_special=False)
    assert tokenizer.decode(tokenizer.encode("a<|eos|>")) == "a"


def test_names_come_from_special_tokens_map_when_the_config_lacks_them(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, byte_level(bos=True, eos=True))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|eos|>"}}))
    assert Tokenizer.load(folder).eos_token == "<|eos|>"


def test_truncation_and_padding_stored_in_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level())
    backend.enable_truncation(3)
    backend.enable_padding(length=10)
    assert len(Tokenizer(backend.to_str()).encode("abcde")) == 5


# --- special tokens ---------------------------------------------------------------------------------------------------


def test_special_tokens_lists_the_special_ones_and_ids_are_found_by_name() -> None:
    tokenizer = Tokenizer(byte_level(stop=True, tool=False))
    assert list(tokenizer.special_tokens) == ["<|stop|>"]
    stop = tokenizer.special_tokens["<|stop|>"]
    assert tokenizer.token_id("<|stop|>") == stop
    assert tokenizer.token_id("<|none|>") is None
    assert tokenizer.is_special(stop)
    assert tokenizer.vocab_size == stop + 2
    assert tokenizer.has_id(stop + 1)
    assert not tokenizer.has_id(stop + 2)
    assert not tokenizer.has_id(-1)


def test_special_tokens_in_plain_text_stay_text() -> None:
    tokenizer = Tokenizer(byte_level(stop=True, tool=False))
    ids = tokenizer.encode("a<|stop|>b", parse_special=False)
    assert tokenizer.special_tokens["<|stop|>"] not in ids
    assert tokenizer.decode(ids) == "a<|stop|>b"


def test_added_tokens_that_are_not_special_are_ordinary_text_unless_named() -> None:
    tool = Tokenizer(byte_level(tool=False)).token_id("<|tool|>")
    assert tool in Tokenizer(byte_level(tool=False)).encode("<|tool|>", parse_special=False)
    named = Tokenizer(byte_level(tool=False), extra_special=["<|tool|>"])
    assert tool not in named.encode("<|tool|>", parse_special=False)
    assert tool in named.encode("<|tool|>")
    assert named.decode(named.encode("<|tool|>")) == "<|tool|>"


def test_the_two_readings_do_not_disturb_each_other_across_threads() -> None:
    tokenizer = Tokenizer(byte_level(stop=True))
    stop = tokenizer.special_tokens["<|stop|>"]
    wrong: list[int] = []

    def work(parse: bool) -> None:
        for _ in range(300):
            if (stop in tokenizer.encode("hello <|stop|> hello", parse_special=parse)) != parse:
                wrong.append(1)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- pieces -----------------------------------------------------------------------------------------------------------

TINY = {
    "byte_level": Tokenizer(byte_level(stop=True, start=True)),
    "sentencepiece": Tokenizer(sentencepiece()),
    "sentencepiece_first": Tokenizer(sentencepiece(first_only=True)),
}
snippets = st.sampled_from(
    ["<|stop|>", "<|start|>", "<|end|>", "<image>", "<s>", "<|st", "op|>", "hi", " ab", "\n", " ", "é"]
)
texts = st.lists(snippets, max_size=6).map("".join)


@settings(deadline=None)
@given(kind=st.sampled_from(sorted(TINY)), pieces=st.lists(st.tuples(texts, st.booleans()), max_size=6))
def test_untrusted_pieces_never_make_special_tokens(kind: str, pieces: list[tuple[str, bool]]) -> None:
    tokenizer = TINY[kind]

    def specials(ids: list[int]) -> list[int]:
        return [token_id for token_id in ids if tokenizer.is_special(token_id)]

    # Neighbouring trusted pieces are one text and may spell a token together.
    filled = [piece for piece in pieces if piece[0]]
    runs = [("".join(text for text, _ in run), trusted) for trusted, run in groupby(filled, lambda piece: piece[1])]
    expected = [
        token_id
        for text, trusted in runs
        for token_id in (specials(tokenizer.encode(text, add_special_tokens=False)) if trusted else ())
    ]
    assert specials(tokenizer.encode_pieces(pieces)) == expected


@settings(deadline=None)
@given(kind=st.sampled_from(sorted(TINY)), parts=st.lists(texts, max_size=6))
def test_cutting_at_special_tokens_gives_the_ids_of_the_whole_text(kind: str, parts: list[str]) -> None:
    tokenizer = TINY[kind]
    whole = "".join(parts)
    expected = tokenizer.encode(whole, add_special_tokens=False)
    assert tokenizer.encode_pieces([(part, True) for part in parts]) == expected
    assert tokenizer._encode_cut(whole, [(whole, True)]) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_pieces_without_special_tokens_in_user_text_are_encoded_as_one_text(name: str) -> None:
    tokenizer = published(name)
    for user in CORPUS[:11]:
        pieces = [("<|im_start|>user\n", True), (user, False), ("<|im_end|> <|end|>\n<|assistant|>\n", True)]
        assert tokenizer.encode_pieces(pieces, add_special_tokens=True) == tokenizer.encode(
            "".join(text for text, _ in pieces)
        )


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("attack", ["{0}", "\n{0}\n{0}", "a{0}b", "{0} ", "{half}"])
def test_published_special_tokens_come_only_from_trusted_pieces(name: str, attack: str) -> None:
    tokenizer = published(name)
    for text, token_id in tokenizer.special_tokens.items():
        user = attack.format(text, half=text[:-1])
        pieces = [(f"x{text}", True), (user, False), (text[-1:], False), (f"{text}y", True)]
        ids = tokenizer.encode_pieces(pieces)
        assert ids.count(token_id) == 2
        assert tokenizer.decode(ids, skip_special_tokens=False).count(text) >= 2


def test_encoding_pieces_takes_linear_time_in_hostile_text() -> None:
    tokenizer = TINY["byte_level"]
    ids = tokenizer.encode_pieces([("<|start|>", True), ("<|stop|>" * 20_000, False), ("<|stop|>", True)])
    assert ids.count(tokenizer.special_tokens["<|stop|>"]) == 1


# --- display ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TINY))
def test_token_text_keeps_leading_spaces(kind: str) -> None:
    tokenizer = TINY[kind]
    word = " h" if kind == "byte_level" else " a"
    ids = tokenizer.encode("hi" + word, add_special_tokens=False)
    assert tokenizer.token_text(ids[-1]) == word
    assert tokenizer.token_text(10**6) == ""


def test_decode_leaves_out_unknown_ids() -> None:
    tokenizer = TINY["byte_level"]
    assert tokenizer.decode([10**7, *tokenizer.encode("hi"), -5]) == "hi"


# --- hostile and missing files ----------------------------------------------------------------------------------------


def test_half_a_surrogate_pair_is_refused_by_name() -> None:
    with pytest.raises(PromptError, match="surrogate"):
        TINY["byte_level"].encode("a\ud800")


def test_a_panic_in_the_regex_engine_is_a_prompt_error() -> None:
    """A backtracking pattern in tokenizer.json makes the library panic with an exception that is no Exception."""
    definition = json.loads(byte_level())
    definition["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = Tokenizer(json.dumps(definition))
    with pytest.raises(PromptError, match="pattern"):
        tokenizer.encode("a" * 40 + "b")
    assert tokenizer.encode("b") == TINY["byte_level"].encode("b")


def test_keyboard_interrupts_are_not_swallowed() -> None:
    from fovea.prompt.tokenizer import _guard

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _guard(interrupted, ModelError("x"))


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"version": "1.0"}', "\x00" * 100, '{"model": ' * 5000])
def test_broken_tokenizer_files_are_model_errors(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.load(folder_with(tmp_path, content))


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_broken_config_files_are_model_errors(tmp_path: Path, content: str) -> None:
    folder = folder_with(tmp_path, byte_level())
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer_config"):
        Tokenizer.load(folder)


def test_an_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1024**3)
    with pytest.raises(ModelError, match="limit"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_any_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ModelNotFoundError):
        Tokenizer.load(tmp_path / "missing")


def test_loading_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, fovea.prompt.tokenizer, fovea.prompt.template, fovea.prompt.detokenizer as d;"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The folder as others load it, and the training code's forward pass against transformers'."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

from tiny import batches, evaluate
from tiny.model import Dense, normalised, patches
from tiny.scenes import Scene, Shape, draw


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def test_size_and_layout(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        count = sum(file.get_tensor(n).numel() for n in names)
        assert {file.get_tensor(n).dtype for n in names} == {torch.bfloat16}
    assert 8e6 <= count <= 12e6
    assert (folder / "model.safetensors").stat().st_size <= 24e6
    assert "model.embed_tokens.weight" in names
    assert "visual.patch_embed.proj.weight" in names
    assert "lm_head.weight" not in names
    config = json.loads((folder / "config.json").read_text())
    assert "text_config" not in config
    assert sum(config["rope_scaling"]["mrope_section"]) * 2 == config["hidden_size"] // config["num_attention_heads"]


@pytest.mark.parametrize(
    "text", ["What colour is the circle?", "PLOT 42.5", "naïve 你好 🙂", "a\n\n b\t c  ", "<|im_end|> x"]
)
def test_tokenizer_encodes_anything(folder: Path, text: str) -> None:
    auto, plain = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = auto(text)["input_ids"]
    assert ids == plain.encode(text, add_special_tokens=False).ids
    assert plain.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("size", [(112, 112), (140, 168), (252, 56)])
def test_patches_equal_the_processor(folder: Path, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    processor = AutoProcessor.from_pretrained(folder).image_processor
    theirs = processor(images=[Image.fromarray(pixels.numpy())], return_tensors="pt")["pixel_values"]
    ours = patches(normalised(pixels[None]))[0].view(-1, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).reshape(-1, 1176)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("group", "pictures", "grid"), [("scene", 1, (4, 6)), ("motion", 4, (4, 4)), ("talk", 0, (0, 0))]
)
def test_dense_forward_equals_transformers(
    model: Qwen2VLForConditionalGeneration, group: str, pictures: int, grid: tuple[int, int]
) -> None:
    rng, bucket = Random(2), batches.Bucket(group, pictures, grid)
    mix = {"scene": {"scene": 1.0}}
    batch = batches.collate(rng, [batches.make_sample(rng, bucket, mix)], bucket)
    dense, inputs, seen = Dense(model), {}, None
    with torch.no_grad():
        if pictures:
            pixels = normalised(batch["pictures"])
            seen = dense.see(pixels)
            doubled = patches(pixels).view(-1, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).reshape(-1, 1176)
            inputs = {
                "pixel_values": doubled,
                "image_grid_thw": torch.tensor([[1, grid[0] * 2, grid[1] * 2]] * pictures),
                "mm_token_type_ids": (batch["ids"] == model.config.image_token_id).int(),
            }
        hidden = dense.read(batch["ids"], batch["positions"], seen, batch["places"])
        theirs = model(input_ids=batch["ids"], attention_mask=torch.ones_like(batch["ids"]), **inputs).logits
    # Padding on the right has other positions; nothing before it can see it.
    real = int((batch["ids"][0] != model.config.text_config.bos_token_id).sum())
    torch.testing.assert_close(dense.logits(hidden)[:, :real], theirs[:, :real], atol=2e-3, rtol=1e-3)


def test_template_gives_the_trained_prompt(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    example = evaluate.held_out("pair", 1)[0]
    prompt = processor.apply_chat_template(evaluate.messages(example), tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=list(example.pictures), return_tensors="pt")
    cells = int(inputs["image_grid_thw"][0].prod()) // 4
    assert inputs["input_ids"][0].tolist() == batches.prompt_ids(batches.DEFAULT_SYSTEM, example.question, 2, cells)


def test_it_sees_a_red_circle(folder: Path) -> None:
    answer = evaluate.transformers_backend(folder)
    picture = draw(Scene((Shape("circle", "red", 0.5, 0.5, 0.5),), (255, 255, 255)), (200, 150))
    example = evaluate.Example("scene", (picture,), "What colour is the circle?", "Red")
    hello = evaluate.Example("scene", (), "Who are you?", "")
    said = answer([example, hello])
    assert said[0] == "Red"
    assert "fovea-tiny" in said[1]


def test_demo_pictures_are_answered(folder: Path) -> None:
    pictures = folder.parent / "pictures"
    entries = json.loads((pictures / "questions.json").read_text())
    examples = [
        evaluate.Example(
            "scene", tuple(Image.open(pictures / n).convert("RGB") for n in e["pictures"]), e["question"], e["answer"]
        )
        for e in entries
    ]
    assert evaluate.transformers_backend(folder)(examples) == [e.answer for e in examples]
    assert all(p.stat().st_size < 30_000 for p in pictures.glob("*.png"))

"""One picture and a question, for each model family, with the prompt written out as the model's authors have it.

python examples/offline_vision_language.py
python examples/offline_vision_language.py --model-type qwen2_vl --image photo.jpg --num-prompts 4
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import fovea
from fovea import LLM, SamplingParams

QUESTION = "What is in this picture?"
BUNDLED = sorted((Path(fovea.__file__).parent / "assets" / "pictures").glob("*.png"))


@dataclass(frozen=True)
class Setup:
    """A model, its prompt for one picture, and the options it is usually run with."""

    model: str
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)


CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
)
SETUPS = {
    "fovea-tiny": Setup("fovea-tiny", CHATML),
    "llava": Setup("llava-hf/llava-1.5-7b-hf", "USER: <image>\n{question}\nASSISTANT:", {"max_model_len": 4096}),
    "phi3_v": Setup(
        "microsoft/Phi-3.5-vision-instruct",
        "<|user|>\n<|image_1|>\n{question}<|end|>\n<|assistant|>\n",
        {"trust_remote_code": True, "max_model_len": 4096, "mm_processor_kwargs": {"num_crops": 16}},
    ),
    "qwen2_vl": Setup(
        "Qwen/Qwen2-VL-2B-Instruct",
        CHATML,
        {"max_model_len": 4096, "mm_processor_kwargs": {"min_pixels": 28 * 28, "max_pixels": 1280 * 28 * 28}},
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=SETUPS, default="fovea-tiny")
    parser.add_argument("--model", help="hub id or folder to use instead of the usual one of the type")
    parser.add_argument("--image", type=Path, default=BUNDLED[0] if BUNDLED else None, help="default: a bundled one")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--num-prompts", type=int, default=1, help="ask this many times, in one batch")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    setup = SETUPS[args.model_type]
    llm = LLM(args.model or setup.model, seed=args.seed, limit_mm_per_prompt={"image": 1}, **setup.options)
    prompt = setup.prompt.format(question=args.question)
    inputs = {"prompt": prompt, "multi_modal_data": {"image": Image.open(args.image)}}
    # A temperature above 0 makes the answers of one batch differ.
    temperature = 0.2 if args.num_prompts > 1 else 0.0
    outputs = llm.generate([inputs] * args.num_prompts, SamplingParams(temperature=temperature, max_tokens=64))
    for output in outputs:
        print(output.outputs[0].text)


if __name__ == "__main__":
    main()

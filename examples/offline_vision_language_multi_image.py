"""Several pictures in one prompt: written out for each family with `generate`, or left to the template with `chat`.

python examples/offline_vision_language_multi_image.py
python examples/offline_vision_language_multi_image.py --model-type phi3_v --image a.jpg b.jpg --method chat
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import fovea
from fovea import LLM, SamplingParams

QUESTION = "Do the two pictures show the same thing?"
BUNDLED = sorted((Path(fovea.__file__).parent / "assets" / "pictures").glob("*.png"))


def llava_prompt(question: str, count: int) -> str:
    return "USER: " + "<image>\n" * count + f"{question}\nASSISTANT:"


def phi3_v_prompt(question: str, count: int) -> str:
    tags = "".join(f"<|image_{i}|>\n" for i in range(1, count + 1))
    return f"<|user|>\n{tags}{question}<|end|>\n<|assistant|>\n"


def qwen2_vl_prompt(question: str, count: int) -> str:
    tags = "<|vision_start|><|image_pad|><|vision_end|>" * count
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{tags}{question}<|im_end|>\n<|im_start|>assistant\n"


PHI_OPTIONS = {"trust_remote_code": True, "mm_processor_kwargs": {"num_crops": 4}}
SETUPS: dict[str, tuple[str, Callable[[str, int], str], dict[str, Any]]] = {
    "fovea-tiny": ("fovea-tiny", qwen2_vl_prompt, {}),
    "llava": ("llava-hf/llava-1.5-7b-hf", llava_prompt, {}),
    "phi3_v": ("microsoft/Phi-3.5-vision-instruct", phi3_v_prompt, PHI_OPTIONS),
    "qwen2_vl": ("Qwen/Qwen2-VL-2B-Instruct", qwen2_vl_prompt, {}),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", choices=SETUPS, default="fovea-tiny")
    parser.add_argument("--model", help="hub id or folder to use instead of the usual one of the type")
    parser.add_argument("--method", choices=("generate", "chat"), default="generate")
    parser.add_argument("--image", type=Path, nargs="+", default=BUNDLED[:2], help="default: two bundled ones")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--num-prompts", type=int, default=1, help="ask this many times, in one batch")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    model, make_prompt, options = SETUPS[args.model_type]
    images = [Image.open(path) for path in args.image]
    limits = {"image": len(images)}
    llm = LLM(args.model or model, seed=args.seed, max_model_len=4096, limit_mm_per_prompt=limits, **options)
    params = SamplingParams(temperature=0.2 if args.num_prompts > 1 else 0.0, max_tokens=64)
    if args.method == "generate":
        inputs = {"prompt": make_prompt(args.question, len(images)), "multi_modal_data": {"image": images}}
        outputs = llm.generate([inputs] * args.num_prompts, params)
    else:
        content = [{"type": "image_pil", "image_pil": image} for image in images]
        message = {"role": "user", "content": [*content, {"type": "text", "text": args.question}]}
        outputs = llm.chat([[message]] * args.num_prompts, params)
    for output in outputs:
        print(output.outputs[0].text)


if __name__ == "__main__":
    main()

"""Ask a running server about pictures with the openai package. Start the server with: fovea serve

python examples/openai_client_for_multimodal.py
python examples/openai_client_for_multimodal.py two-images --image a.png b.png --question "How do they differ?"
python examples/openai_client_for_multimodal.py url --image-url https://example.org/photo.jpg
"""

from __future__ import annotations

import argparse
import base64
import io
import mimetypes
from pathlib import Path
from typing import Any

from openai import OpenAI
from PIL import Image, ImageDraw

import fovea

PICTURES = Path(fovea.__file__).parent / "assets" / "pictures"
MODES = ("base64", "url", "two-images", "frames", "stream")
QUESTIONS = {"two-images": "Are the two pictures the same?", "frames": "What happens in these pictures?"}


def data_url(data: bytes, name: str = "frame.png") -> str:
    return f"data:{mimetypes.guess_type(name)[0]};base64,{base64.b64encode(data).decode()}"


def frame(x: int) -> bytes:
    """Of a video in which a circle moves; videos are sent as some of their frames, in their order."""
    picture, file = Image.new("RGB", (112, 112), "white"), io.BytesIO()
    ImageDraw.Draw(picture).ellipse((x, 44, x + 24, 68), fill="red")
    picture.save(file, "PNG")
    return file.getvalue()


def messages(urls: list[str], question: str) -> Any:
    """The question needs no image token: pictures go where their parts stand."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def ask(client: OpenAI, model: str, chat: Any) -> None:
    answer = client.chat.completions.create(model=model, messages=chat, temperature=0)
    print(answer.choices[0].message.content)


def stream(client: OpenAI, model: str, chat: Any) -> None:
    for chunk in client.chat.completions.create(model=model, messages=chat, temperature=0, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", default="base64", choices=MODES)
    parser.add_argument("--image", type=Path, nargs="+", help="files to send; default: bundled ones, or drawn frames")
    parser.add_argument("--image-url", help="fetched by the server, see its --allowed-media-networks")
    parser.add_argument("--question")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="if the server was started with one")
    parser.add_argument("--model", help="default: the first that the server has")
    args = parser.parse_args()
    if args.mode == "url":
        urls = [args.image_url or parser.error("give --image-url")]
    elif args.mode == "frames" and not args.image:
        urls = [data_url(frame(x)) for x in (8, 32, 56, 80)]
    else:
        files = args.image or sorted(PICTURES.glob("two_?.png" if args.mode == "two-images" else "shapes.png"))
        urls = [data_url(path.read_bytes(), path.name) for path in files]
    client = OpenAI(base_url=args.base_url, api_key=args.api_key)
    model = args.model or client.models.list().data[0].id
    chat = messages(urls, args.question or QUESTIONS.get(args.mode, "What is in this picture?"))
    (stream if args.mode == "stream" else ask)(client, model, chat)


if __name__ == "__main__":
    main()

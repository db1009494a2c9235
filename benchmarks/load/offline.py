"""The offline side of the comparison, in a process of its own.

    python -m benchmarks.load.offline FILE --options '{"max_num_seqs": 32}' --repeats 2

FILE has a request's body in each line; the first `--warm` of them are asked before the clock starts. Writes JSON to
stdout: seconds of each repeat, tokens of one, CPU seconds, and the texts of the first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from fovea import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--options", type=json.loads, default={}, help="of the engine, as JSON")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm", type=int, default=8, help="requests before the clock starts")
    args = parser.parse_args()

    bodies = [json.loads(line) for line in args.file.read_bytes().splitlines()]
    asked = [body["messages"] for body in bodies]
    params = [SamplingParams(temperature=0.0, max_tokens=body["max_tokens"], ignore_eos=True) for body in bodies]
    llm = LLM(use_tqdm=False, **args.options)
    llm.chat(asked[: args.warm], params[: args.warm], use_tqdm=False)
    seconds: list[float] = []
    texts: list[str] = []
    cpu_s = time.process_time()
    for repeat in range(args.repeats):
        started = time.perf_counter()
        # A salt of its own keeps every repeat's pictures and prompts unknown to the caches.
        outputs = llm.chat(asked[args.warm :], params[args.warm :], use_tqdm=False, cache_salt=f"offline {repeat}")
        seconds.append(time.perf_counter() - started)
        texts = texts or [output.outputs[0].text for output in outputs]
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(json.dumps({"seconds": seconds, "tokens": num_tokens, "cpu_s": time.process_time() - cpu_s, "texts": texts}))


if __name__ == "__main__":
    main()

"""docs/options.md, made from the options themselves: python -m fovea.cli.page > docs/options.md"""

from __future__ import annotations

from collections.abc import Sequence

from fovea.cli.compat import ANY, IGNORED, SWITCH
from fovea.cli.options import ALIASES, Option, engine_options, server_options, shown

PAGE = """\
# Options

Made by `python -m fovea.cli.page` from `src/fovea/core/config.py` and `src/fovea/core/server_config.py`; a test checks
that they agree.

## Where an option comes from

1. a flag: `max_model_len=4096` is `--max-model-len 4096`; underscores work too
2. an environment variable: `FOVEA_MAX_MODEL_LEN=4096`
3. a file: `--config serve.yaml` (or `FOVEA_CONFIG=serve.yaml`) with a line `max-model-len: 4096`
4. the default

The first of these that names the option is taken, whole: lists are not joined. `fovea serve` takes all options,
`fovea run` those of an engine (except `task`), and `LLM(...)` those of an engine as keywords; `LLM` reads no variables
and no files.

- Whole numbers may be `32k` (32,000) or `32K` (32,768); where a default is left to Fovea, `auto` asks for it.
- Switches are `--name` and `--no-name`; in a variable `1`, `true`, `yes`, `on` or `0`, `false`, `no`, `off`.
- Mappings are `image=2,video=0` or JSON. Lists are `a,b` or JSON; a list flag may be repeated.
- An unknown flag or an unknown key of the file is an error that offers the nearest; an unknown `FOVEA_` variable is a
  warning. An empty variable counts as not set; for lists it is the empty list. An empty key variable is an error.
- Also read: {aliases}.
- Flags are visible to everyone on the machine in `ps`. Keys belong into `FOVEA_API_KEY` or a file (`--api-key-file`).

A file for `--config` is YAML with the names of options, dashes or underscores, and `model`. Relative paths in it start
from the current folder. Options that only `fovea serve` has may stand in a file that `fovea run` reads.

```yaml
model: Qwen/Qwen2-VL-2B-Instruct
max-model-len: 8k
limit-mm-per-prompt: {{image: 4}}
api-key-file: /etc/fovea/keys
host: 0.0.0.0
```

## Engine

{engine}

## Server

Those of the engine, and:

{server}

## Flags of vLLM that are taken and change nothing

They describe what Fovea does anyway; `fovea serve` says in one line that it took them. Any other value is an error.

{ignored}
"""


def options_page() -> str:
    """docs/options.md: every option of LLM and of the command line."""
    engine = engine_options()
    server = [option for option in server_options() if option not in engine]
    return PAGE.format(engine=_table(engine), server=_table(server), aliases=_aliases(), ignored=_ignored())


def _table(options: Sequence[Option]) -> str:
    lines = ["| option | flag | variable | type | default | meaning |", "|--|--|--|--|--|--|"]
    for option in options:
        default = "" if option.default in (None, "", ()) else f"`{shown(option)}`"
        cells = (f"`{option.name}`", f"`{option.flag}`", f"`{option.variable}`", _type_name(option), default)
        lines.append(f"| {' | '.join(cells)} | {_cell(option.help)} |")
    return "\n".join(lines)


def _aliases() -> str:
    pairs = [(alias, Option(name, str, None, "").variable) for name, found in ALIASES.items() for alias in found]
    return ", ".join(f"`{alias}` for `{variable}`" for alias, variable in pairs)


def _ignored() -> str:
    lines = []
    for name, values in IGNORED.items():
        kind = "" if values == (SWITCH,) else " with any value" if values == (ANY,) else f": {' or '.join(values)}"
        lines.append(f"- `--{name}`{kind}")
    return "\n".join(lines)


def _type_name(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    names = {bool: "switch", int: "whole number", float: "number", str: "text", tuple: "list"}
    return names.get(option.kind, "mapping")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(options_page(), end="")

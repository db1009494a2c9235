"""The file given with --config: YAML, one mapping of option names to values.

Read by PyYAML's safe loader without anchors (a few lines of them can stand for gigabytes) and without repeated keys.
Errors are UsageError and name the file, and the key or line.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from fovea.cli.options import UsageError

MAX_FILE_BYTES = 256 * 1024


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.MarkedYAMLError(problem="it refers to an anchor, which is not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"{str(key.value)[:60]!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_config_file(path: Path) -> dict[str, Any]:
    """What the file says, by key as written. Raises UsageError."""
    text = _read(path)
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - it is a safe loader
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{where} is not YAML that can be read: {error.problem or 'bad syntax'}.") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError(f"{path} is not YAML that can be read.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a mapping such as max-model-len: 4096, not a {type(content).__name__}.")
    other = next((key for key in content if not isinstance(key, str)), None)
    if other is not None:
        raise UsageError(f"{path} has the key {str(other)[:60]!r}, which is no name of an option.")
    return content


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror or 'it is no file'}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"--config {path} is larger than {MAX_FILE_BYTES // 1024} KiB; that is no list of options.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"--config {path} is not UTF-8 text.") from None

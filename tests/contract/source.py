"""The package's source as syntax trees, for the tests of this folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "fovea"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file: `name` is its path below src/fovea, `package` the first part of its dotted name."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.partition("/")[0].removesuffix(".py")

    @property
    def dotted(self) -> str:
        inside = self.name.removesuffix(".py").removesuffix("__init__").rstrip("/")
        return ".".join(["fovea", *inside.split("/")]) if inside else "fovea"


@lru_cache(maxsize=1)
def modules() -> tuple[Module, ...]:
    paths = sorted(SOURCE.rglob("*.py"))
    texts = [(path, path.read_text(encoding="utf-8")) for path in paths]
    return tuple(Module(p.relative_to(SOURCE).as_posix(), p, text, ast.parse(text)) for p, text in texts)


def imports(module: Module, *, of: str) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, whether inside a function) of every import whose first part is `of`, wherever it stands."""
    inside = {id(node) for f in functions(module) for node in ast.walk(f)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == of:
                yield name, node.lineno, id(node) in inside


def functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node

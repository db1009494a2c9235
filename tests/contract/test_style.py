"""House rules that a linter doesn't know. Exceptions are listed here with their reason, so that a new one is a visible
line."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping

import pytest

from tests.contract.source import Module, functions, modules

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400

# Longer files: at most the lines given here.
LONG_FILES: Mapping[str, int] = {}

# Built-in exceptions that are raised on purpose: they are a protocol of Python, or never leave the file.
BUILTIN_RAISES: Mapping[tuple[str, str], str] = {
    ("__init__.py", "AttributeError"): "the protocol of a module's __getattr__",
    ("media/source.py", "ValueError"): "caught by the one caller, in the same file",
}
# The command line reports to argparse, whose protocol for a bad value this is.
ARGPARSE = "ArgumentTypeError"

MUTABLE_CALLS = {"list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter", "bytearray"}
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_every_file_says_what_it_is_for(module: Module) -> None:
    if module.path.name == "__init__.py" and not module.tree.body:
        return
    assert ast.get_docstring(module.tree), f"{module.name} has no docstring"


def test_no_file_is_too_long() -> None:
    lengths = {module.name: module.text.count("\n") for module in modules()}
    long = {name: n for name, n in lengths.items() if n > LONG_FILES.get(name, MAX_FILE_LINES)}
    assert not long, f"longer than {MAX_FILE_LINES} lines: {long}"


def test_no_function_is_too_long() -> None:
    lengths = {
        f"{module.name}:{f.lineno} {f.name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for module in modules()
        for f in functions(module)
    }
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}


def test_listed_exceptions_are_still_needed() -> None:
    lengths = {module.name: module.text.count("\n") for module in modules()}
    assert all(lengths[name] > MAX_FILE_LINES for name in LONG_FILES)
    raised = {(module.name, name) for module in modules() for name, _ in raises(module)}
    assert set(BUILTIN_RAISES) <= raised


def test_there_is_no_global_statement() -> None:
    found = [f"{m.name}:{n.lineno}" for m in modules() for n in ast.walk(m.tree) if isinstance(n, ast.Global)]
    assert not found


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_modules_have_no_mutable_state(module: Module) -> None:
    """Two engines in one process must not meet. Constants in capitals may be tables; nobody writes to them."""
    found = [f"{name} (line {line})" for name, line in mutable_assignments(module) if name != "__all__"]
    assert not found, f"{module.name}: {found}"


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_constants_are_never_written_to(module: Module) -> None:
    constants = {name for name, _ in mutable_assignments(module, constants=True)}
    for function in functions(module):
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                assert not (isinstance(node.value, ast.Name) and node.value.id in constants), ast.unparse(node)


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_errors_raised_are_our_own(module: Module) -> None:
    """What a user meets has a code, a status and a text of ours."""
    for name, line in raises(module):
        if hasattr(builtins, name) and (module.name, name) not in BUILTIN_RAISES:
            pytest.fail(f"{module.name}:{line} raises {name}")
        if name == ARGPARSE:
            assert module.package == "cli"


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_environment_variables_are_read_in_one_place(module: Module) -> None:
    reads = "os.environ" in module.text or "getenv" in module.text
    assert not reads or module.name == "cli/main.py"


def raises(module: Module) -> Iterator[tuple[str, int]]:
    """The names of exceptions raised by class; `raise` alone and `raise error` pass on what another place made."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = made.id if isinstance(made, ast.Name) else made.attr if isinstance(made, ast.Attribute) else ""
            if name[:1].isupper():
                yield name, node.lineno


def mutable_assignments(module: Module, *, constants: bool = False) -> Iterator[tuple[str, int]]:
    """Names that a module binds to a list, dict or set; those in capitals, or the others."""
    for node in module.tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        for target in targets:
            name = ast.unparse(target)
            if is_mutable(value) and bool(CONSTANT.fullmatch(name)) == constants:
                yield name, node.lineno


def is_mutable(value: ast.expr) -> bool:
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    if isinstance(value, displays):
        return True
    called = value.func if isinstance(value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id in MUTABLE_CALLS

"""Imports go down only, and what is meant to be light stays light."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from fovea import kernels
from tests.contract.source import Module, imports, modules

# What each package may import from Fovea, beside itself. TYPE_CHECKING and imports inside functions count too.
ALLOWED: Mapping[str, frozenset[str]] = {
    "core": frozenset(),
    "native": frozenset({"core"}),
    "media": frozenset({"core", "native"}),
    "families": frozenset({"core"}),
    "kernels": frozenset({"core", "native"}),
    "prompt": frozenset({"core", "families", "media"}),
    "models": frozenset({"core", "families", "kernels", "native"}),
    "engine": frozenset({"core", "families", "kernels", "models"}),
    "pipeline": frozenset({"core", "families", "media", "prompt"}),
    "llm": frozenset({"core", "engine", "families", "models", "pipeline", "prompt"}),
    "ipc": frozenset({"core", "engine", "families", "media", "models", "pipeline", "prompt"}),
    "server": frozenset({"core", "families", "ipc", "media", "models", "pipeline", "prompt"}),
    "cli": frozenset(
        {
            *("core", "engine", "families", "ipc", "kernels", "llm", "media", "models", "native", "pipeline", "prompt"),
            "server",
        }
    ),
    "__main__": frozenset({"cli"}),
    "__init__": frozenset({"core", "llm"}),
}
LLM_MAY_IMPORT_OF_MODELS = "fovea.models.folder"

# Third parties that a package must not know.
WITHOUT_TORCH = ("core", "native", "media", "families", "prompt", "pipeline", "server")


def target(name: str) -> str:
    """The package of fovea.<package>...; the public names of fovea itself count as no package."""
    parts = name.split(".")
    return parts[1] if parts[1] in ALLOWED else "fovea"


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_imports_go_down_only(module: Module) -> None:
    allowed = ALLOWED[module.package] | {module.package}
    if module.package in ("cli", "server"):
        allowed |= {"fovea"}  # __version__
    wrong = [f"{name} (line {line})" for name, line, _ in imports(module, of="fovea") if target(name) not in allowed]
    assert not wrong, f"{module.name} is in {module.package!r}, which may not import {', '.join(wrong)}"


def test_llm_knows_of_models_just_where_their_folder_is() -> None:
    llm = next(module for module in modules() if module.name == "llm.py")
    names = [name for name, _, _ in imports(llm, of="fovea") if target(name) == "models"]
    assert all(name.startswith(LLM_MAY_IMPORT_OF_MODELS) for name in names)


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_imports_of_fovea_stand_at_the_top(module: Module) -> None:
    """Imports inside functions hide cycles. The command line and the __init__ files load lazily on purpose."""
    if module.package == "cli" or module.path.name == "__init__.py":
        return
    hidden = [f"{name} (line {line})" for name, line, inside in imports(module, of="fovea") if inside]
    assert not hidden


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_front_packages_never_name_torch(module: Module) -> None:
    if module.package in WITHOUT_TORCH:
        assert not list(imports(module, of="torch"))


@pytest.mark.parametrize("third_party", ["PIL", "huggingface_hub", "tokenizers", "torch", "tqdm", "transformers"])
def test_core_imports_the_standard_library_only(third_party: str) -> None:
    """numpy is the exception, in annotations: pixels and positions are arrays."""
    assert not [m.name for m in modules() if m.package == "core" and list(imports(m, of=third_party))]
    assert loaded_after("import fovea.core.types, fovea.core.config, fovea.core.params", third_party, "numpy") == []


def test_no_operation_is_called_like_a_module_of_its_package() -> None:
    """Importing the module would put it in the operation's place, at the first call on a GPU and not before."""
    names = {module.path.stem for module in modules() if module.package == "kernels"}
    assert names >= {"drawing", "reference"}
    assert not names & set(kernels.__all__)


def loaded_after(statement: str, *names: str) -> list[str]:
    """Which of `names` are in sys.modules of a fresh interpreter after `statement`."""
    code = f"import sys\n{statement}\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import fovea",
        "from fovea import SamplingParams, EngineConfig, RequestOutput, BatchError",
        "import fovea.pipeline.preparer, fovea.pipeline.collector",
        "import fovea.families.registry",
        "import fovea.engine.scheduler, fovea.engine.memory",
        "import fovea.cli.main",
        "import fovea.cli.run, fovea.cli.doctor, fovea.cli.demo, fovea.cli.models",
    ],
)
def test_light_imports_leave_torch_and_transformers_out(statement: str) -> None:
    assert loaded_after(statement, "torch", "transformers", "torchvision") == []


def test_the_command_line_starts_without_numpy_and_pillow() -> None:
    """Help and mistyped flags answer before anything heavy is read."""
    statement = "import fovea.cli.main, fovea.cli.run"
    assert loaded_after(statement, "numpy", "PIL", "jinja2", "tokenizers", "huggingface_hub", "torch") == []


def test_importing_the_engine_leaves_transformers_out() -> None:
    """Models are Fovea's own; transformers is for tokenizers that have no tokenizer.json."""
    assert loaded_after("import fovea.llm", "transformers", "torchvision", "triton") == []


def test_an_answer_needs_neither_torchs_compiler_nor_its_algebra() -> None:
    """sympy alone takes half a second of a start, and comes in by harmless looking operations on meta tensors."""
    slow = {"sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "transformers"}
    question = ["run", "-q", "--device", "cpu", "--max-tokens", "2", "What is that?"]
    answered = loaded_after(f"from fovea.cli.main import main\nassert main({question}) == 0", *slow)
    assert slow & set(answered) <= set(loaded_after("import torch", *slow))

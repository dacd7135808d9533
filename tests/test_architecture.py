"""The layout is a rule: files are the core, folders are the edges, and imports point down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import kogpt

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kogpt"
MAX_LINES, MAX_PARAMETERS = 70, 6  # of a function

# What each file of the core may import, in the order of data flow: nothing but these.
STANDARD = set(sys.stdlib_module_names)
ARITHMETIC = {"adapter", "checkpoint", "config", "errors", "memory", "quantize", "runner", "sampling"}
ARITHMETIC |= {"weights", "numpy"}
CORE: dict[str, set[str]] = {
    "__init__": {"classification", "config", "errors", "generation", "sampling", "session"},
    "__main__": {"cli"},
    "errors": set(),
    "bits": {"numpy"},
    "examples": set(),
    "config": {"errors"},
    "files": {"errors"},
    "texts": {"errors", "zstandard"},
    "data_files": {"errors", "files", "texts"},
    "datasets": {"data_files"},
    "metrics": {"numpy"},
    "hub": {"errors", "manifest", "huggingface_hub"},
    "memory": {"errors"},
    "weights": {"errors", "files", "numpy"},
    "torch_archive": {"errors", "files", "weights", "numpy"},
    "quantize": {"config", "errors", "weights", "numpy"},
    "layout": {"config", "errors", "files", "quantize", "weights", "numpy"},
    "manifest": {"errors", "files", "memory", "weights"},
    "phi": {"adapter", "config", "errors", "quantize", "weights", "numpy"},
    "gguf_file": {"errors", "files", "weights", "numpy"},
    "checkpoint": {
        "config",
        "errors",
        "files",
        "gguf_file",
        "hub",
        "layout",
        "manifest",
        "phi",
        "quantize",
        "torch_archive",
        "weights",
        "numpy",
    },
    "patterns": set(),
    "tokenizer": {"config", "errors", "files", "patterns", "texts", "tokenizers"},
    "adapter": {"config", "errors", "quantize", "weights", "numpy"},
    "peft": {"adapter", "checkpoint", "config", "errors", "files", "hub", "patterns", "weights", "numpy"},
    "sampling": {"errors", "texts", "numpy"},
    "generation_defaults": {"files", "config", "errors", "sampling"},
    "runner": {"adapter", "config", "errors", "memory", "sampling", "numpy"},
    "model": {"config", "torch"},
    "numpy_runner": ARITHMETIC,
    "native_layout": {"config", "runner", "sampling", "numpy"},
    "native_runner": ARITHMETIC | {"native_layout"},
    "torch_transfer": {"numpy", "torch"},
    "torch_cache": {"config", "memory", "runner", "torch_transfer", "numpy", "torch"},
    "torch_lora": {"adapter", "memory", "model", "torch_transfer", "numpy", "torch"},
    "torch_sampling": {"sampling", "torch_transfer", "numpy", "torch"},
    "torch_linear": {"model", "quantize", "torch_transfer", "numpy", "torch"},
    "torch_offload": {"torch_transfer", "torch"},
    "torch_weights": {
        "config",
        "errors",
        "memory",
        "model",
        "quantize",
        "rounding",
        "torch_cache",
        "torch_linear",
        "torch_offload",
        "torch_transfer",
        "weights",
        "torch",
    },
    "gpu_linear": {"triton"},
    "gpu_kernels": {"gpu_linear", "triton"},
    "gpu_tiles": {"errors", "files"},
    "gpu_steps": {
        "config",
        "gpu_kernels",
        "gpu_linear",
        "gpu_tiles",
        "model",
        "quantize",
        "torch_cache",
        "torch_linear",
        "torch_pass",
        "torch",
        "triton",
    },
    "torch_pass": {
        "model",
        "torch_cache",
        "torch_lora",
        "torch_sampling",
        "torch_weights",
        "numpy",
        "torch",
    },
    "gpu_choice": {
        "config",
        "errors",
        "gpu_steps",
        "gpu_tiles",
        "quantize",
        "torch_linear",
        "torch_pass",
        "torch",
        "triton",
    },
    "torch_decoder": {
        "errors",
        "sampling",
        "torch_cache",
        "torch_pass",
        "torch_sampling",
        "torch_transfer",
        "numpy",
        "torch",
    },
    "torch_attention": {
        "model",
        "torch_cache",
        "torch_lora",
        "torch_pass",
        "torch_transfer",
        "torch_weights",
        "numpy",
        "torch",
    },
    "torch_prompt": {
        "model",
        "torch_attention",
        "torch_cache",
        "torch_decoder",
        "torch_lora",
        "torch_transfer",
        "numpy",
        "torch",
    },
    "torch_runner": ARITHMETIC
    | {
        "gpu_choice",
        "model",
        "torch_attention",
        "torch_cache",
        "torch_decoder",
        "torch_lora",
        "torch_pass",
        "torch_prompt",
        "torch_sampling",
        "torch_transfer",
        "torch_weights",
        "torch",
    },
    "rounding": {"config", "errors", "memory", "native_runner", "quantize", "weights", "numpy"},
    "request": {"sampling", "numpy"},
    "prefix_cache": {"runner", "numpy"},
    "rows": {"errors", "request", "runner", "sampling", "numpy"},
    "row_store": {"adapter", "errors", "prefix_cache", "request", "rows", "runner", "numpy"},
    "engine": {"adapter", "errors", "request", "row_store", "rows", "runner", "sampling", "numpy"},
    "placement": {
        "checkpoint",
        "config",
        "errors",
        "memory",
        "native_runner",
        "numpy_runner",
        "quantize",
        "runner",
        "torch_runner",
        "weights",
        "torch",
    },
    "grammar": {"errors", "sampling", "tokenizer", "numpy", "llguidance"},
    "session": {"engine", "errors", "grammar", "request", "sampling", "tokenizer", "numpy"},
    "comparison": set(),
    "classification": {"errors", "request", "session", "numpy"},
    "generation": {
        "adapter",
        "checkpoint",
        "classification",
        "config",
        "engine",
        "errors",
        "generation_defaults",
        "manifest",
        "peft",
        "placement",
        "request",
        "sampling",
        "session",
        "tokenizer",
        "numpy",
    },
}
# A folder may import every file, and of the folders only these.
FOLDERS: dict[str, set[str]] = {
    "tuning": {"training"},
    "pretraining": {"training"},
    "tasks": {"search"},
    "server": {"search", "tasks"},
    "cli": {"*"},
}

# What a helper is called that has no home (reference: its own module, or the lowest that uses it).
DRAWERS = {"utils", "common", "helpers", "constants", "types", "base", "registry", "factory", "compat"}
DRAWERS |= {"models", "callbacks", "api"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str, everything: bool = True) -> Iterator[str]:
    """Absolute names that a module imports, inside functions too; `everything`: for type checking as well."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    typing_only = set()
    if not everything:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                typing_only |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(TREES[name]):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def head(module: str) -> str:
    """`kogpt.cli.info` -> `cli`, `kogpt` -> `__init__`; of others the top package."""
    parts = module.split(".")
    return parts[0] if parts[0] != "kogpt" else parts[1] if len(parts) > 1 else "__init__"


def test_the_list_of_files_is_complete() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files <= set(CORE), "a new file of the core: say here what it may import"


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.parent == PACKAGE])
def test_a_file_imports_what_it_may_and_no_folder(name: str) -> None:
    mine = "__init__" if name == "kogpt" else name.removeprefix("kogpt.")
    found = {head(module) for module in imports(name)} - STANDARD - {"__init__"}
    assert found <= CORE[mine]
    if mine != "__main__":
        assert not any((PACKAGE / module).is_dir() for module in found)


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.parent != PACKAGE])
def test_a_folder_imports_files_and_no_other_folder(name: str) -> None:
    mine = head(name)
    allowed = FOLDERS.get(mine, set()) | {mine}
    others = {head(module) for module in imports(name) if module.startswith("kogpt.")}
    folders = {module for module in others if (PACKAGE / module).is_dir()}
    assert "*" in allowed or folders <= allowed
    assert "__main__" not in others


def test_no_cycle() -> None:
    graph = {
        name: {module for module in imports(name, everything=False) if module in MODULES and module != name}
        for name in MODULES
    }
    graph["kogpt"] = set()  # its names are resolved on first use
    list(TopologicalSorter(graph).static_order())  # CycleError names the cycle


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]
    return [(name, node) for name, node in nodes if isinstance(node, kinds)]


def test_functions_are_short() -> None:
    long = {f"{name}.{f.name}": f.end_lineno - f.lineno + 1 for name, f in functions() if f.end_lineno}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it: its parameters are pointers, sizes and constants, not objects."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def test_functions_take_few_parameters() -> None:
    taken = {}
    for name, function in functions():
        if is_kernel(function):
            continue
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        taken[f"{name}.{function.name}"] = len([arg for arg in names if arg not in ("self", "cls", "ctx")])
    assert {name: count for name, count in taken.items() if count > MAX_PARAMETERS} == {}


def test_no_drawers() -> None:
    stems = {part for name in MODULES for part in name.split(".")}
    assert stems & DRAWERS == set()


def test_nothing_is_caught_blindly_and_dropped() -> None:
    blind = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not any(isinstance(child, ast.Raise) for child in ast.walk(node))
    ]
    assert blind == []


def test_public_names_are_sorted_and_exist() -> None:
    assert kogpt.__all__ == sorted(kogpt.__all__)
    assert set(kogpt.__all__) == set(kogpt._HOMES) | {"__version__"}
    for name in kogpt.__all__:
        assert getattr(kogpt, name) is not None
    assert dir(kogpt) == kogpt.__all__


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules after a program that starts with nothing of ours."""
    program = f"{code}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_kogpt_loads_no_third_party_package() -> None:
    plain = modules_after("pass")  # what .pth files of the environment load by themselves
    assert modules_after("import kogpt") - plain - STANDARD == {"kogpt"}


def test_the_core_needs_no_torch() -> None:
    loaded = modules_after("import kogpt.generation, kogpt.numpy_runner, kogpt.cli.generate, kogpt.cli.info")
    assert {"torch", "transformers"} & loaded == set()
    assert {"numpy", "tokenizers"} <= loaded


@pytest.mark.parametrize("code", ["from kogpt import KoGPT", "from kogpt import Sampling"])
def test_public_names_resolve_on_first_use(code: str) -> None:
    assert "numpy" in modules_after(code)

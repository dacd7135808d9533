"""How kernels are launched, read from the source: no Triton and no card is needed."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "kogpt"
TREES = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def kernels() -> set[str]:
    """Names of what Triton compiles and the host may launch."""
    return {
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.endswith("_kernel")
        and any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)
    }


def named(node: ast.AST) -> str:
    """`kernels.qkv_kernel` -> `qkv_kernel`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_every_kernel_is_launched_on_the_device_of_its_tensors() -> None:
    """Triton launches on torch's current device: with cuda:1 that is another than the tensors'."""
    known, launched, elsewhere = kernels(), set(), []
    assert len(known) >= 8
    for file, tree in TREES.items():
        guarded = {
            node.args[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_launch"
        }
        launched |= {named(node) for node in guarded}
        uses = [node for node in ast.walk(tree) if named(node) in known]
        elsewhere += [f"{file}:{ast.unparse(node)}" for node in uses if node not in guarded]
    assert elsewhere == [] and launched == known


def test_the_launch_is_within_the_guard() -> None:
    (launch,) = (
        node
        for node in ast.walk(TREES["gpu_steps.py"])
        if isinstance(node, ast.FunctionDef) and node.name == "_launch"
    )
    (guard,) = (node for node in ast.walk(launch) if isinstance(node, ast.With))
    assert ast.unparse(guard.items[0]).startswith("torch.cuda.device_of(")
    launches = [
        node
        for node in ast.walk(launch)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert launches and all(node in list(ast.walk(guard)) for node in launches)

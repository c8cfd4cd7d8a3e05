"""The rooms of the package: imports run downward only, and only some modules need torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import iwp_export

ROOT = Path(iwp_export.__file__).parent
FLOORS = (
    ("__init__",),
    ("cli", "harnesses"),
    ("api",),
    ("reports",),
    ("calibrator",),
    ("monitors",),
    ("parity", "accuracy", "latency"),
    ("scorer",),
    ("questions", "estimator"),
    ("exporter",),
    ("runtime",),
    ("backends",),
    ("engine",),
    ("models",),
    ("bundle",),
    ("settings",),
    ("device", "pruning"),
    ("view",),
    ("progress", "files", "version"),
    ("errors",),
)
"""From the top down; a room may import from lower floors and from itself."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

NEED_TORCH = (
    "calibrator",
    "monitors",
    "parity",
    "scorer.py",
    "exporter",
    "backends/torch",
    "models",
    "pruning/torch_select.py",
    "pruning/importance.py",
)
"""Rooms and files that may import torch; those that run on a robot do so inside functions."""
FILES = sorted(path for path in ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether while it is being imported itself."""
    tree = ast.parse(path.read_text())
    at_once = {id(node) for statement in tree.body for node in _outside_functions(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in at_once
            yield from ((f"{node.module}.{alias.name}", id(node) in at_once) for alias in node.names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.If):  # an `if TYPE_CHECKING` block does not run
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_functions(child)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "iwp_export" and len(parts) > 1 else None


def test_imports_run_downward() -> None:
    upward = []
    for path in FILES:
        mine = path.relative_to(ROOT).with_suffix("").parts[0]
        for module, _ in imports(path):
            other = room(module)
            if other not in (None, mine) and FLOOR[other] <= FLOOR[mine]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}, which is not below it")
    assert not upward


def test_torch_is_imported_where_it_may_be() -> None:
    wrong = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        for module, at_once in imports(path):
            if module.split(".")[0] == "torch" and (
                not name.startswith(NEED_TORCH) or (at_once and name.startswith("models/"))
            ):
                wrong.append(f"{name} imports torch")
            if module.split(".")[0] == "calibration":
                wrong.append(f"{name} imports {module}, which is not part of the package")
    assert not wrong


LOADS_TORCH = (
    "backends.torch.",
    "calibrator.",
    "exporter.live",
    "exporter.loading",
    "exporter.trace",
    "monitors.measure",
    "parity.checkpoint",
    "pruning.torch_select",
    "scorer",
)
"""Modules, or the beginnings of their names, whose import alone loads torch."""
NEVER_AT_ONCE = {"transformers", "onnxruntime", "matplotlib", "sklearn", "tensorrt", "tensorrt_rtx", "lmms_eval"}


def test_what_an_import_loads() -> None:
    """Torch only where it is listed, and the selection's oracle nothing but numpy."""
    modules = {_module(path): path for path in FILES}
    direct = {name: {module for module, at_once in imports(path) if at_once} for name, path in modules.items()}

    def reached(module: str) -> set[str]:
        found, open_ = set[str](), [module]
        while open_:
            name = open_.pop()
            if name not in found:
                found.add(name)
                open_ += [*direct.get(name, ()), *(name.rsplit(".", 1)[:-1])]
        return {name.split(".")[0] for name in found}

    loaded = {name.removeprefix("iwp_export."): reached(name) for name in modules if name != "iwp_export"}
    assert not [name for name, packages in loaded.items() if "torch" in packages and not name.startswith(LOADS_TORCH)]
    for name in ("pruning.reference", "pruning.importance"):
        assert loaded[name] <= {"iwp_export", "numpy", *sys.stdlib_module_names}
    harness = "harnesses.lmms_eval_model"
    assert not [name for name, packages in loaded.items() if packages & NEVER_AT_ONCE and name != harness]

    light = [f"iwp_export.{name}" for name, packages in loaded.items() if not packages & {"torch", "lmms_eval"}]
    code = f"import {', '.join(light)}; import sys; print(sorted({NEVER_AT_ONCE | {'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def _module(path: Path) -> str:
    return ".".join(("iwp_export", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")

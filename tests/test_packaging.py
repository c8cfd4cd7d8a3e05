"""What the wheel carries: the package with its assets, and the kernels' sources, which a checkout has elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from iwp_export.engine.flavour import is_installed
from iwp_export.engine.kernels import INCLUDES, SOURCES

ROOT = Path(__file__).parents[1]
BLOCKED = {"torch", "onnxscript", "safetensors", "onnxruntime", "transformers", "tokenizers", "jinja2", "PIL"}


def test_the_wheel_has_the_kernels_and_nothing_of_the_workshop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels = {
        f"iwp_export/engine/cuda/{path.relative_to(SOURCES)}" for folder in INCLUDES for path in folder.iterdir()
    }
    assert len(kernels) > 5
    assets = ("tiny_llava/model.safetensors", "tiny_llava_heldout/questions.jsonl", "tiny_llava_heldout/199.png")
    assert kernels | {"iwp_export/py.typed", *(f"iwp_export/assets/{name}" for name in assets)} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"iwp_export"}


def test_an_engine_is_built_with_the_extra_for_it_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    """The packages of `[build]` and the base ones; torch and all that only an export or a run needs are blocked."""
    if not is_installed("rtx"):
        pytest.skip("TensorRT-RTX is not installed: pip install 'iwp-export[rtx]' runs this test, with no GPU")
    (extra,) = re.findall(r"^build = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert re.findall(r'"([\w-]+)>=', extra) == ["onnx", "onnx-ir"]
    plan = tmp_path / "engine.plan"
    code = f"""
import sys
blocked = {BLOCKED}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from iwp_export.cli.main import main
sys.exit(main(["build", {str(tiny_bundle)!r}, "-o", {str(plan)!r}, "--target", "rtx", "--sm", "89"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert plan.is_file()

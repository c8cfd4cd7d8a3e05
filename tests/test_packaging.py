"""What the wheel carries: the package with its assets, and the kernels' sources, which a checkout has elsewhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from iwp_export.engine.kernel_library import INCLUDES, SOURCES

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_the_kernels_and_nothing_of_the_workshop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels = {
        f"iwp_export/engine/cuda/{path.relative_to(SOURCES)}" for folder in INCLUDES for path in folder.iterdir()
    }
    assert len(kernels) > 5
    assert kernels | {"iwp_export/py.typed", "iwp_export/assets/tiny_llava/model.safetensors"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"iwp_export"}

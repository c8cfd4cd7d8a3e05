"""Builds the kernels' shared library with nvcc alone, for tests and measurements; CMakeLists.txt ships it."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent
SOURCES = tuple(sorted((ROOT / "src").glob("*.cu")))
INCLUDES = (ROOT / "include", ROOT / "src")

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "110", "120")
"""Turing, A100, Ampere cards, Orin, Ada, Hopper, Thor, Blackwell cards."""


def nvcc_flags(architectures: Sequence[str]) -> list[str]:
    """Compiler flags for machine code of `architectures`, warnings on."""
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    includes = [f"-I{path}" for path in INCLUDES]
    return ["-std=c++17", "-O3", "-Xcompiler=-Wall,-Wextra,-fPIC,-fvisibility=hidden", *includes, *codes]


def build(output: Path, architectures: Sequence[str], nvcc: str = "nvcc", threads: int = 2) -> Path:
    """Compile and link the shared library `output` for `architectures`.

    Raises:
        RuntimeError: nvcc failed or warned; the message is its output.
    """
    command = [
        nvcc,
        "--shared",
        *nvcc_flags(architectures),
        f"--threads={threads}",
        "-o",
        str(output),
        *map(str, SOURCES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    if done.returncode or "warning" in said:
        raise RuntimeError(f"{' '.join(command)}\nexited with {done.returncode} and said:\n{said}")
    return output


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("libiwp_select_tokens.so"))
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), metavar="NN")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--threads", type=int, default=2, help="compilations at a time")
    args = parser.parse_args()
    print(build(args.output, args.architectures, args.nvcc, args.threads))


if __name__ == "__main__":
    main()

"""Where the kernels come from: named, compiled once into the cache, or a line that says what to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from iwp_export.device import machine
from iwp_export.device.gpu import Gpu
from iwp_export.device.machine import find_nvcc
from iwp_export.engine import kernels as kernel_library
from iwp_export.engine.kernels import check_kernels, compile_library, find_kernels
from iwp_export.errors import BackendError

ADA, ORIN, BLACKWELL = Gpu("RTX 4090", "89", 13), Gpu("Orin", "87", 12), Gpu("RTX 5090", "120", 13)
FAKE_NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V{version}.131"; exit; fi
if [ "$1" = --list-gpu-code ]; then for sm in {sms}; do echo sm_$sm; done; exit; fi
echo "$@" >> "{log}"
while [ "$1" != -o ]; do shift; done
{action}
"""


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler and an empty cache."""
    for name in ("IWP_SELECT_TOKENS", "CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", "/bin"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "CUDA_FOLDERS", ())
    monkeypatch.setattr(machine, "_packaged_toolkits", lambda: [])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Libraries that were loaded."""
    paths: list[Path] = []
    monkeypatch.setattr(kernel_library, "SharedKernels", paths.append)
    return paths


def write_nvcc(folder: Path, action: str = 'echo library > "$2"', version: str = "12.4", sms: str = "") -> Path:
    """A compiler that does `action` and writes its arguments to nvcc.log; it may tell the architectures it knows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvcc"
    path.write_text(FAKE_NVCC.format(log=folder / "nvcc.log", action=action, version=version, sms=sms))
    path.chmod(0o755)
    return path


def calls(nvcc: Path) -> list[str]:
    log = nvcc.with_name("nvcc.log")
    return log.read_text().splitlines() if log.exists() else []


def test_compiled_once_for_each_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: list[Path]
) -> None:
    nvcc = write_nvcc(tmp_path / "cuda")
    monkeypatch.setenv("CUDACXX", str(nvcc))
    for gpu in (ADA, ADA, ORIN):
        find_kernels(gpu)
    first, again, other = loaded
    assert first == again != other
    assert first.read_text() == "library\n"
    assert first.is_relative_to(tmp_path / "cache" / "iwp-export")
    assert [call.count("code=sm_89") for call in calls(nvcc)] == [1, 0]
    assert "select.cu" in calls(nvcc)[0]
    assert list(first.parent.iterdir()) == [first]  # nothing else was left there
    nvcc.unlink()
    check_kernels(ADA)
    with pytest.raises(BackendError, match="nvcc is not found"):
        check_kernels(BLACKWELL)


def test_a_compiler_newer_than_the_driver_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: list[Path]
) -> None:
    nvcc = write_nvcc(tmp_path / "cuda", version="13.5")
    monkeypatch.setenv("CUDACXX", str(nvcc))
    for refuse in (find_kernels, check_kernels):
        with pytest.raises(
            BackendError, match=r"is of CUDA 13\.5, the driver runs CUDA 12 at most: .*toolkit 12.*CUDACXX"
        ):
            refuse(ORIN)
    assert calls(nvcc) == []
    find_kernels(ADA)
    newer = Gpu("RTX 4090", "89", 14)  # after an update of the driver
    find_kernels(newer)
    assert loaded[0] != loaded[1]


def test_a_compiler_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = write_nvcc(tmp_path / "cuda")
    nvcc.write_text("#!/bin/sh\necho what >&2\n")
    monkeypatch.setenv("CUDACXX", str(nvcc))
    with pytest.raises(BackendError, match="does not tell its version: pip install"):
        find_kernels(ADA)


def test_other_sources_are_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: list[Path]) -> None:
    monkeypatch.setenv("CUDACXX", str(write_nvcc(tmp_path / "cuda")))
    find_kernels(ADA)
    header = tmp_path / "include" / "new.h"
    header.parent.mkdir()
    header.write_text("// another version")
    monkeypatch.setattr(kernel_library, "INCLUDES", (header.parent,))
    find_kernels(ADA)
    assert loaded[0] != loaded[1]


def test_a_named_library_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: list[Path]) -> None:
    named = tmp_path / "mine.so"
    monkeypatch.setenv("IWP_SELECT_TOKENS", str(named))
    check_kernels(ADA)
    find_kernels(ADA)
    assert loaded == [named]


def test_a_named_library_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IWP_SELECT_TOKENS", str(tmp_path / "none.so"))
    with pytest.raises(BackendError, match=r"none\.so is no usable library.*unset that"):
        find_kernels(ADA)


def test_without_a_compiler_the_way_to_one_is_said() -> None:
    with pytest.raises(
        BackendError, match=r"nvcc is not found: pip install 'iwp-export\[kernels\]'.*IWP_SELECT_TOKENS"
    ):
        find_kernels(ADA)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("echo \"nvcc fatal   : Unsupported gpu architecture 'compute_120'\" >&2; exit 1", "Unsupported gpu arch"),
        ("echo one >&2; echo 'x.cu(3): error: no such thing' >&2; exit 2", r"x\.cu\(3\): error: no such thing"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_failing_compiler_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str, reason: str
) -> None:
    monkeypatch.setenv("CUDACXX", str(write_nvcc(tmp_path / "cuda", action)))
    with pytest.raises(BackendError, match=f"does not compile the pruning kernels for SM 120: .*{reason}") as caught:
        find_kernels(BLACKWELL)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_compiler_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="does not start"):
        compile_library(tmp_path / "out.so", ["89"], tmp_path / "nvcc")


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDACXX", str(write_nvcc(tmp_path / "cuda")))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="set XDG_CACHE_HOME"):
        find_kernels(ADA)


def test_the_compiler_is_looked_for_where_cmake_and_installers_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_nvcc().path is None
    packaged = write_nvcc(tmp_path / "packaged")
    monkeypatch.setattr(machine, "_packaged_toolkits", lambda: [str(packaged.parent)])
    assert find_nvcc().path == packaged
    installed = write_nvcc(tmp_path / "installed")
    monkeypatch.setattr(machine, "CUDA_FOLDERS", (str(installed.parent),))
    assert find_nvcc().path == installed
    home = write_nvcc(tmp_path / "home" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find_nvcc().path == home
    on_path = write_nvcc(tmp_path / "on_path")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_nvcc().path == on_path
    named = write_nvcc(tmp_path / "named")
    monkeypatch.setenv("CUDACXX", str(named))
    assert find_nvcc().path == named
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nothing"))
    assert find_nvcc().path is None


def test_of_several_compilers_the_newest_that_the_driver_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: list[Path]
) -> None:
    """JetPack's toolkit beside a newer one: the newest of all would make what the driver does not run."""
    for version in ("12.4", "12.10", "12.6", "13.0"):
        write_nvcc(tmp_path / f"cuda-{version}" / "bin", version=version)
    monkeypatch.setattr(machine, "CUDA_FOLDERS", (str(tmp_path / "cuda-*" / "bin"),))
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "cuda-13.0" / "bin"), "/usr/bin", "/bin"]))
    chosen = {cuda: find_nvcc(cuda).path for cuda in (None, 14, 13, 12, 11)}
    assert {cuda: path.parent.parent.name for cuda, path in chosen.items() if path} == {
        **dict.fromkeys((None, 14, 13, 11), "cuda-13.0"),
        12: "cuda-12.10",
    }
    find_kernels(ORIN)
    assert calls(tmp_path / "cuda-12.10" / "bin" / "nvcc") and not calls(tmp_path / "cuda-13.0" / "bin" / "nvcc")
    assert (find_nvcc(12).version, find_nvcc(12).problem) == ("12.10", None)
    newer = find_nvcc(11)
    assert newer.version == "13.0" and "the driver runs CUDA 11 at most" in str(newer.problem)
    monkeypatch.setenv("CUDACXX", str(tmp_path / "cuda-12.4" / "bin" / "nvcc"))
    assert find_nvcc(12).path == tmp_path / "cuda-12.4" / "bin" / "nvcc"  # the user's word is the last


def test_an_architecture_that_the_compiler_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = write_nvcc(tmp_path / "cuda", version="12.6", sms="75 80 86 87 89 90")
    monkeypatch.setenv("CUDACXX", str(nvcc))
    with pytest.raises(BackendError, match=r"CUDA 12\.6, makes no code for SM 120 of this GPU, only for 75, 80, 86"):
        check_kernels(BLACKWELL)
    assert calls(nvcc) == []
    check_kernels(ORIN)


@pytest.mark.parametrize(
    ("sms", "made"),
    [
        ("50 75 80 86 87 89 90", {"75", "80", "86", "87", "89", "90"}),
        ("75 80 86 87 88 89 90 100 101 103 120", {"75", "80", "86", "87", "89", "90", "120"}),
        ("80 86 87 88 89 90 100 110 120 121", {"80", "86", "87", "89", "90", "110", "120"}),
        ("", {"75", "80", "86", "87", "89", "90", "110", "120"}),
    ],
)
def test_as_a_program_it_makes_what_the_compiler_knows(tmp_path: Path, sms: str, made: set[str]) -> None:
    nvcc = write_nvcc(tmp_path / "cuda", sms=sms)
    command = [sys.executable, "-m", "iwp_export.engine.kernels", "-o", str(tmp_path / "out.so")]
    subprocess.run(command, env={**os.environ, "CUDACXX": str(nvcc)}, check=True, capture_output=True)
    assert set(re.findall(r"code=sm_(\d+)", calls(nvcc)[0])) == made


def test_as_a_program_it_writes_a_library_or_one_line(tmp_path: Path) -> None:
    nvcc = write_nvcc(tmp_path / "cuda")
    output = tmp_path / "out.so"
    command = [sys.executable, "-m", "iwp_export.engine.kernels", "-o", str(output), "--sm", "87", "110"]
    done = subprocess.run(command, env={**os.environ, "CUDACXX": str(nvcc)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"wrote {output}\n")
    assert output.read_text() == "library\n"
    assert "code=sm_87" in calls(nvcc)[0] and "code=sm_110" in calls(nvcc)[0]
    done = subprocess.run(command, env={**os.environ, "CUDACXX": "/nothing"}, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)

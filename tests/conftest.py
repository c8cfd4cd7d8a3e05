"""What all tests share: no network, skips that are named, hypothesis's profiles, and one export of each tiny model."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may depend on a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

from iwp_export.device.gpu import find_gpus
from tests.harnesses.installed import NEEDS_LMMS_EVAL
from tests.view.browser import NEEDS_CHROMIUM

NEEDS_GPU = "needs an NVIDIA GPU"

hypothesis.settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=500, print_blob=True, deadline=None)
hypothesis.settings.load_profile("quick")  # --hypothesis-profile, which `make test-slow` gives, takes precedence


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = find_gpus()[1] if marked else None
    if reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"{NEEDS_GPU}: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run for want of a GPU, a browser or an evaluation harness."""
    for need in (NEEDS_GPU, NEEDS_CHROMIUM, NEEDS_LMMS_EVAL):
        skipped = [report for report in terminalreporter.stats.get("skipped", []) if need in str(report.longrepr)]
        if skipped:
            terminalreporter.write_line(f"{len(skipped)} tests skipped: each {need}, and none is here")


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """`once(name, make)` is the path that `make(path)` wrote, once for all workers. Do not change what is there."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def path_of(name: str, make: Callable[[Path], object]) -> Path:
        path = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                make(path)
                (shared / f"{name}.made").touch()
        return path

    return path_of


def export(model: str | Path, bundle: Path, dtype: Any, **settings: Any) -> None:
    """Write a bundle; settings are those of pruning."""
    from iwp_export import api
    from iwp_export.pruning.settings import PruningSettings

    api.export(str(model), bundle, PruningSettings(**settings), dtype=dtype)


@pytest.fixture(scope="session")
def tiny_bundle(once: Once) -> Path:
    """tiny-llava exported at keep 0.3 in float32."""
    return once("tiny-llava.bundle", lambda path: export("tiny-llava", path, "float32", keep=0.3))


@pytest.fixture(scope="session")
def half_bundle(once: Once) -> Path:
    """tiny-llava exported in float16."""
    return once("tiny-llava-half.bundle", lambda path: export("tiny-llava", path, "float16"))


@pytest.fixture(scope="session")
def random_llava(once: Once) -> Path:
    """The folder of a random LLaVA checkpoint, three decoder layers in several files; see `tests.exporter.tiny`."""
    from tests.exporter.tiny import write_llava

    return once("random-llava", lambda folder: write_llava(folder, shard_size="100KB"))


@pytest.fixture(scope="session")
def random_bundle(once: Once, random_llava: Path) -> Path:
    """`random_llava` exported in float32, pruned at layer 1 with keep 0.3."""
    return once("random-llava.bundle", lambda path: export(random_llava, path, "float32", layer=1, keep=0.3))


@pytest.fixture(scope="session")
def bfloat16_bundle(once: Once) -> Path:
    """A random LLaVA of Qwen2 in bfloat16, pruned at layer 1 with keep 0.3, and in NAME.checkpoint its checkpoint."""
    from tests.exporter.tiny import write_llava

    def make(bundle: Path) -> None:
        write_llava(bundle.with_suffix(".checkpoint"), "qwen2")  # with biases, and tied
        export(bundle.with_suffix(".checkpoint"), bundle, "bfloat16", layer=1, keep=0.3)

    return once("bfloat16.bundle", make)


@pytest.fixture(scope="session")
def random_next(once: Once) -> Path:
    """The folder of a random LLaVA-NeXT checkpoint whose tiles are 56 x 56 pixels; see `tests.exporter.tiny`."""
    from tests.exporter.tiny import write_llava_next

    return once("random-next", write_llava_next)


@pytest.fixture(scope="session")
def random_next_bundle(once: Once, random_next: Path) -> Path:
    """`random_next` exported in float32, pruned at layer 1 with keep 0.3."""
    return once("random-next.bundle", lambda path: export(random_next, path, "float32", layer=1, keep=0.3))


@contextlib.contextmanager
def graphs_of(bundle: Path) -> Iterator[None]:
    """Within it, exports take the graphs and weights of this bundle and trace none, which takes seconds."""
    import onnx_ir as ir

    from iwp_export.exporter import trace

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # A copy: onnx refuses weights with a second hard link, which a build of an engine makes meanwhile.
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        for role in ("vision", "decoder"):
            patch.setattr(trace, f"trace_{role}", lambda *arguments, role=role: ir.load(copy / f"{role}.onnx"))
        yield

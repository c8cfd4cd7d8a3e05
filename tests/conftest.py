"""What all tests share: no network, GPU tests skipped aloud, and one exported tiny-llava."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may depend on a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
from filelock import FileLock

from iwp_export.device.gpu import find_gpus
from tests.harnesses.installed import NEEDS_LMMS_EVAL
from tests.view.browser import NEEDS_CHROMIUM

NEEDS_GPU = "needs an NVIDIA GPU"


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


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """tiny-llava exported at keep 0.3 in float32, once for all worker processes. Do not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    bundle = shared / "tiny-llava.bundle"
    with FileLock(shared / "tiny-llava.lock"):
        if not bundle.exists():
            from iwp_export import api
            from iwp_export.pruning.settings import PruningSettings

            api.export("tiny-llava", bundle, PruningSettings(keep=0.3), dtype="float32")
    return bundle

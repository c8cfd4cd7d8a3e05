"""Kernels that TensorRT-RTX compiled while an engine ran: kept, read again, and never in the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iwp_export.backends.trt.runner import JitCache
from tests.backends.trt.fake_trt import TRT, FakeConfig

ENGINE: Any = SimpleNamespace(create_runtime_config=FakeConfig)


def test_what_was_compiled_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "engine.cache"
    first = JitCache(TRT, ENGINE, path)
    first.config(specialize=True).cache.content = b"IWP kernels"
    first.save()
    assert path.read_bytes() == b"IWP kernels"
    assert list(path.parent.iterdir()) == [path]
    assert JitCache(TRT, ENGINE, path).config(specialize=True).cache.content == b"IWP kernels"


def test_a_file_of_another_machine_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "engine.cache"
    path.write_bytes(b"another driver's")
    cache = JitCache(TRT, ENGINE, path)
    assert cache.config(specialize=True).cache.content == b"IWP empty"
    cache.save()
    assert path.read_bytes() == b"IWP empty"


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "engine.cache"
    cache = JitCache(TRT, ENGINE, path)
    cache.save()
    path.unlink()
    cache.save()
    assert not path.exists()


def test_contexts_share_the_cache_and_differ_in_strategy(tmp_path: Path) -> None:
    cache = JitCache(TRT, ENGINE, tmp_path / "engine.cache")
    prompts, steps = cache.config(specialize=True), cache.config(specialize=False)
    assert prompts.cache is steps.cache is not None
    strategies = [c.dynamic_shapes_kernel_specialization_strategy for c in (prompts, steps)]
    assert strategies == [TRT.DynamicShapesKernelSpecializationStrategy.LAZY, 2]
    assert prompts.allocation == steps.allocation == TRT.ExecutionContextAllocationStrategy.USER_MANAGED


def test_a_full_disk_is_a_warning_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = JitCache(TRT, ENGINE, tmp_path / "rtx" / "engine.cache")
    with pytest.warns(UserWarning, match="the disk is full"):
        cache.save()
    assert not list((tmp_path / "rtx").iterdir())


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = JitCache(TRT, ENGINE, tmp_path / "file" / "engine.cache")
    with pytest.warns(UserWarning, match="kernels were not kept in"):
        cache.save()

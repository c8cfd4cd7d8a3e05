"""A checkpoint's model in torch: what it says of devices, memory and threads."""

from __future__ import annotations

import os

import pytest
import torch
from transformers.utils import logging

from iwp_export.errors import BackendError, SettingsError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.live import enough_memory, limit_threads, open_live
from iwp_export.exporter.plan import plan_export


def test_no_cuda_device_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no CUDA device") as refused:
        open_live(plan_export("tiny-llava"), "float32", "cuda")
    assert refused.value.options == ("device",)


def test_too_little_memory_is_one_line():
    with (
        pytest.raises(BackendError, match=r"does not fit into the memory of cuda: 9 GiB are free$"),
        enough_memory("cuda"),
    ):
        raise torch.cuda.OutOfMemoryError("9 GiB are free\nand a page of advice")


def test_threads_are_at_most_the_machines():
    before = torch.get_num_threads()
    try:
        limit_threads(10**6)
        assert torch.get_num_threads() <= (os.cpu_count() or 1)
        limit_threads(1)
        assert torch.get_num_threads() == 1
        with pytest.raises(SettingsError, match="threads must be 1 or more, got 0"):
            limit_threads(0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bars", [True, False])
def test_loading_a_model_says_nothing(capfd, bars):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    try:
        open_checkpoint("tiny-llava").load_model("bfloat16")
        assert logging.is_progress_bar_enabled() == bars
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    assert "Loading" not in "".join(capfd.readouterr())

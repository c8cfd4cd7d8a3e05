"""What is advised where a provider is missing exists for that machine."""

from __future__ import annotations

import platform
import sys

import pytest

from iwp_export.backends.ort.session import how_to_install


@pytest.mark.parametrize(
    ("machine", "python", "packaged"),
    [
        ("x86_64", (3, 10), True),
        ("AMD64", (3, 13), True),
        ("aarch64", (3, 10), False),
        ("aarch64", (3, 12), True),
        ("arm64", (3, 12), False),
    ],
)
def test_the_gpu_package_is_advised_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, machine: str, python: tuple[int, int], packaged: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "version_info", (*python, 0))
    for provider in ("cuda", "tensorrt"):
        advice = how_to_install(provider)
        assert ("pip install 'iwp-export[ort-gpu]'" in advice) == packaged
        assert packaged or f"no onnxruntime-gpu for {machine} and Python {python[0]}.{python[1]}" in advice
    assert how_to_install("cpu") == "pip install 'iwp-export[ort]'"

"""Loading NAME.plan: what is wrong is said before TensorRT is asked, with the command that builds it again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import iwp_export
from iwp_export.engine.flavour import Flavour
from iwp_export.engine.gpu import Gpu
from iwp_export.engine.plan import PlanPaths
from iwp_export.errors import BackendError, BundleError
from iwp_export.runtime import trt
from iwp_export.runtime.trt_engine import deserialize
from tests.runtime.toy import write_plan


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with TensorRT-RTX and a card of SM 89, which never gets as far as an engine."""
    here = SimpleNamespace(gpu=Gpu("RTX 4090", "89"), stream=1, version="1.7.1.116")
    monkeypatch.setattr(trt, "CudaDevice", lambda: here)
    monkeypatch.setattr(trt, "load_flavour", lambda name: Flavour(name, here.version, SimpleNamespace()))
    monkeypatch.setattr(trt, "make_logger", lambda module: pytest.fail("TensorRT was asked"))
    return here


def rejection(path: Path) -> str:
    with pytest.raises(BackendError) as caught:
        iwp_export.load(str(path))
    return str(caught.value)


def test_another_gpu_is_refused_with_the_command(tmp_path: Path, machine: Any) -> None:
    machine.gpu = Gpu("RTX 5090", "120")
    path = write_plan(tmp_path / "toy.plan")
    assert rejection(path) == (
        f"{path} was built for SM 86, 89, RTX 5090 is SM 120: engines are not portable. Build it again with: "
        f"iwp-export build toy.bundle -o {path} --target rtx --sm 120 --max-context 256 --max-prompt 200 "
        "--max-images 1 --force"
    )


def test_a_jetson_is_told_to_use_its_own_tensorrt(tmp_path: Path, machine: Any) -> None:
    machine.gpu = Gpu("Orin", "87")
    assert "--target tensorrt --max-context 256" in rejection(write_plan(tmp_path / "toy.plan"))


def test_another_version_is_refused(tmp_path: Path, machine: Any) -> None:
    text = rejection(write_plan(tmp_path / "toy.plan", version="1.3.0.35"))
    assert "was built by TensorRT-RTX 1.3.0.35, 1.7.1.116 is installed here" in text


def test_a_matching_engine_goes_on_to_the_kernels(tmp_path: Path, machine: Any, monkeypatch: Any) -> None:
    def no_kernels(sm: str) -> Any:
        raise BackendError(f"no kernels for {sm}")

    monkeypatch.setattr(trt, "make_logger", lambda module: None)
    monkeypatch.delenv("IWP_TENSORRT_PLUGIN", raising=False)
    monkeypatch.setattr(trt, "find_kernels", no_kernels)
    assert rejection(write_plan(tmp_path / "toy.plan")) == "no kernels for 89"


@pytest.mark.parametrize("name", ["toy.json", "toy.vision.plan", "toy.processor/tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_plan(tmp_path / "toy.plan")
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        iwp_export.load(str(path))


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    path.write_bytes(b"NOT AN ENGINE")
    with pytest.raises(BundleError, match=r"toy\.plan is not the file that was built"):
        iwp_export.load(str(path))


def test_a_json_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    info = PlanPaths.of(path).info
    for text, message in (("{}", "does not describe an engine"), ("{", "cannot be read")):
        info.write_text(text)
        with pytest.raises(BundleError, match=message):
            iwp_export.load(str(path))


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    info = PlanPaths.of(path).info
    info.write_text(json.dumps({**json.loads(info.read_text()), "schema_version": 2}))
    with pytest.raises(BundleError, match="upgrade iwp-export"):
        iwp_export.load(str(path))


def test_options_of_bundles_are_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    with pytest.raises(BackendError, match="an engine runs on the TensorRT that built it"):
        iwp_export.load(str(path), provider="cuda")


def test_an_engine_that_tensorrt_refuses_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(b"x")
    logger = SimpleNamespace(errors=["Serialization assertion failed"])
    module = SimpleNamespace(
        __name__="tensorrt", Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: None)
    )
    with pytest.raises(BackendError, match=r"tensorrt does not load .*x\.plan: Serialization assertion failed"):
        deserialize(module, logger, path)

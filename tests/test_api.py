"""The public functions: each called twice in one process, with paths as `str`, then as `Path`."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import iwp_export
from iwp_export import api, settings
from iwp_export.engine.flavour import is_installed
from iwp_export.errors import BackendError, IwpError
from tests.conftest import graphs_of

NAMES = ("bench", "build", "calibrate", "estimate", "export", "load", "validate")
KINDS = (str, Path)
"""Of every path: each function is called with one, then with the other."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one question."""
    folder = tmp_path_factory.mktemp("asked")
    image = (Path(iwp_export.__file__).parent / "assets" / "tiny_llava_samples" / "000.png").resolve()
    (folder / "q.jsonl").write_text(f'{{"image": "{image}", "prompt": "how many digits ?", "answer": "two"}}\n')
    return folder / "q.jsonl"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, random_llava: Path, random_bundle: Path) -> list[Path]:
    """Exports of a random model, one for each kind of path."""
    folder = tmp_path_factory.mktemp("exported")
    with graphs_of(random_bundle):
        return [
            iwp_export.export(kind(random_llava), kind(folder / f"{kind.__name__}.bundle"), {"keep": 0.3, "layer": 1})
            for kind in KINDS
        ]


def test_export_and_load(bundles: list[Path]) -> None:
    for kind, bundle in zip(KINDS, bundles, strict=True):
        assert iwp_export.load(kind(bundle), threads=1).manifest.pruning.layer == 1


def test_estimate() -> None:
    model = Path(iwp_export.__file__).parent / "assets" / "tiny_llava"
    first, second = (iwp_export.estimate(kind(model), "agx-orin") for kind in KINDS)
    assert first == second


def test_build(bundles: list[Path], tmp_path: Path) -> None:
    if not is_installed("rtx"):
        pytest.skip("TensorRT-RTX is not installed: pip install 'iwp-export[rtx]' runs this test, with no GPU")
    for kind in KINDS:
        chosen = settings.BuildSettings(target="rtx", sm=["87"], plugin=kind("none.so"))  # type: ignore[arg-type]
        assert chosen.plugin == Path("none.so")
        with pytest.raises(BackendError, match="cannot build for SM 87"):
            iwp_export.build(kind(bundles[0]), kind(tmp_path / "engine.plan"), chosen)


def test_validate(tiny_bundle: Path, asked: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        record, data = kind(tmp_path / f"{kind.__name__}.npz"), kind(asked)
        made = iwp_export.validate(kind(tiny_bundle), record=record, data=data, parity_tokens=2, threads=1)
        assert made.accuracy is not None and made.accuracy.questions == 1
        again = iwp_export.validate(kind(tiny_bundle), against=record, data=data, threads=1)
        assert again.parity is not None and not [gate for gate in again.gates if not gate.passed]


def test_bench(tiny_bundle: Path, asked: Path) -> None:
    for kind in KINDS:
        made = iwp_export.bench(kind(tiny_bundle), data=kind(asked), pairs=14, warmup=1, new_tokens=2, threads=1)
        assert made.latency is not None


def test_calibrate(asked: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    first, second = (
        iwp_export.calibrate("tiny-llava", kind(tmp_path / f"{kind.__name__}.json"), kind(asked), layers=[4])
        for kind in KINDS
    )
    assert first.settings == second.settings


def test_functions_stay_functions_whatever_is_imported() -> None:
    """A room of the same name would replace the function as soon as it is imported."""
    rooms = {path.stem for path in Path(iwp_export.__file__).parent.iterdir()}
    assert not rooms & set(NAMES)
    assert all(callable(getattr(iwp_export, name)) for name in NAMES) and set(NAMES) < set(iwp_export.__all__)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, iwp_export; print([name for name in ('torch', 'numpy', 'onnxruntime') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_paths_that_the_system_cannot_hold_are_one_line(tmp_path: Path, path: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: iwp_export.load(path),
        lambda: iwp_export.validate(path),
        lambda: iwp_export.validate("x.bundle", data=path),
        lambda: iwp_export.validate("x.bundle", against=path),
        lambda: iwp_export.bench(path),
        lambda: iwp_export.build(path, tmp_path / "x.plan"),
        lambda: iwp_export.build(tmp_path, f"{path}.plan"),
        lambda: iwp_export.export("tiny-llava", path),
        lambda: iwp_export.export(path, tmp_path / "x.bundle"),
        lambda: iwp_export.estimate(path, "thor"),
        lambda: iwp_export.calibrate("tiny-llava", f"{path}.json"),
        lambda: iwp_export.calibrate(path, tmp_path / "x.json"),
    ]
    for call in calls:
        with pytest.raises(IwpError, match="has characters that cannot be printed") as refused:
            call()
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_named_and_typed(name: str) -> None:
    for parameter in inspect.signature(getattr(api, name)).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.annotation not in (parameter.empty, "Any")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("validate", settings.ValidationSettings),
        ("bench", settings.BenchSettings),
        ("calibrate", settings.CalibrationSettings),
    ],
)
def test_parameters_are_the_settings_with_their_defaults(name: str, kind: type) -> None:
    parameters = inspect.signature(getattr(api, name)).parameters
    for each in dataclasses.fields(kind):
        assert parameters[each.name].default == each.default, each.name


def test_threads_bound_torch_too(tiny_bundle: Path, asked: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        iwp_export.validate(tiny_bundle, data=asked, parity_tokens=1, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)

"""A plan refuses in one line what would fail after hours of work."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export import api
from iwp_export.calibrator import plan as plans
from iwp_export.errors import DataError, IwpError, OutputError, SettingsError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import SHIPPED
from iwp_export.settings import CalibrationSettings
from tests.exporter.tiny import write_llava


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A model that brings no samples."""
    folder: Path = tmp_path_factory.mktemp("models") / "mine"
    write_llava(folder)
    return str(folder)


def plan(tmp_path, model="tiny-llava", output="out.json", **options):
    force = options.pop("force", False)
    return api.plan_calibration(model, tmp_path / output, CalibrationSettings(**options), force=force)


def test_what_is_left_out(tmp_path):
    made = plan(tmp_path)
    assert made.candidate_layers == (1, 2, 3, 4) and made.legal_layers == range(8)
    assert (made.keeps, made.objective, made.device) == ((PruningSettings().keep,), "kl", "cpu")
    assert len(made.samples.questions) == 96 and made.samples.answers and made.max_new_tokens == 16
    assert plan(tmp_path, speedup=1.5).keeps == plan(tmp_path, max_drop=0.01).keeps == ()
    assert plan(tmp_path, keep=[0.2, 0.1, 0.2]).keeps == (0.2, 0.1)
    assert plan(tmp_path, layers=[4, 1, 4]).candidate_layers == (1, 4)


@pytest.mark.parametrize(
    ("options", "message", "names"),
    [
        ({"samples": 0}, "samples must be 1 to", ("samples",)),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 to", ("max_new_tokens",)),
        ({"seed": -1}, "seed must be 0 to", ("seed",)),
        ({"seed": 2**31}, "seed must be 0 to", ("seed",)),
        ({"objective": "speed"}, "objective must be one of kl, agreement, accuracy, got 'speed'", ("objective",)),
        ({"device": "tpu"}, "device must be one of cpu, cuda, got 'tpu'", ("device",)),
        ({"dtype": "int8"}, "dtype must be one of auto, float32", ("dtype",)),
        ({"layers": [2, 8]}, "cannot be pruned at layer 8; choose from 0 to 7", ("layers",)),
        ({"keep": [0.2], "speedup": 1.5}, "give one budget, not keep and speedup", ("keep", "speedup")),
        ({"keep": []}, "keep takes numbers", ("keep",)),
        ({"keep": [1.0]}, "prunes nothing", ("keep",)),
        ({"speedup": 0.5}, "above 1", ("speedup",)),
        ({"max_drop": 1.0}, "below 1", ("max_drop",)),
    ],
)
def test_what_is_out_of_range(tmp_path, options, message, names):
    with pytest.raises(SettingsError, match=message) as refused:
        plan(tmp_path, **options)
    assert refused.value.options == names and "\n" not in str(refused.value)


def test_files_that_would_be_replaced_or_are_one(tmp_path):
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "page.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    for output, message in (
        ("there.json", "already exists"),
        ("page.json", r"page\.html: it already exists"),
        ("folder", "it is a folder"),
    ):
        with pytest.raises(OutputError, match=message):
            plan(tmp_path, output=output)
    assert plan(tmp_path, output="page.json", force=True)
    for force in (True, False):
        with pytest.raises(OutputError, match="would be the recipe and its page"):
            plan(tmp_path, output="new.html", force=force)


def test_models_without_samples_or_answers(tmp_path, other):
    with pytest.raises(DataError, match="has no samples of its own") as refused:
        plan(tmp_path, other)
    assert refused.value.options == ("data",)
    samples = SHIPPED["tiny-llava"]["samples"].parent
    assert plan(tmp_path, other, data=samples, samples=3).samples.warning
    with pytest.raises(DataError, match="needs an `answer` with every sample"):
        plan(tmp_path, other, data=samples, objective="accuracy")


def test_names_that_a_recipe_cannot_hold(tmp_path):
    folder = tmp_path / "shots\n1"
    folder.mkdir()
    (folder / "0.png").write_bytes((SHIPPED["tiny-llava"]["samples"].parent / "000.png").read_bytes())
    with pytest.raises(IwpError, match="cannot be printed") as refused:
        plan(tmp_path, data=folder)
    assert str(refused.value).isprintable()


def test_a_cpu_takes_float32_where_it_leaves_half_of_the_memory(tmp_path, monkeypatch):
    size = plan(tmp_path).export.weight_bytes * 2  # stored in 16 bits
    for free, dtype in ((None, "float32"), (2 * size + 1, "float32"), (2 * size, "bfloat16")):
        monkeypatch.setattr(plans, "available_bytes", lambda free=free: free)
        assert plan(tmp_path).dtype == dtype
        assert plan(tmp_path, dtype="float16").dtype == "float16"
    assert plan(tmp_path, device="cuda").dtype == "float16"

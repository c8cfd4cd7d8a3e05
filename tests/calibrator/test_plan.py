"""A plan refuses in one line what would fail after hours of work; samples from a folder or a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from iwp_export.calibrator import plan as plans
from iwp_export.calibrator.plan import (
    FEWEST_HELD_OUT,
    GENERIC_PROMPTS,
    GENERIC_WARNING,
    CalibrationPlan,
    Samples,
    plan_calibration,
    read_samples,
)
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


SAMPLES = SHIPPED["tiny-llava"]["samples"].parent


def plan(tmp_path, model="tiny-llava", output="out.json", force=False, **options) -> CalibrationPlan:
    return plan_calibration(model, tmp_path / output, CalibrationSettings(**options), force)


def test_what_is_left_out(tmp_path):
    made = plan(tmp_path)
    assert made.candidate_layers == (1, 2, 3, 4) and made.legal_layers == range(8)
    assert (made.keeps, made.settings.objective, made.dtype) == ((PruningSettings().keep,), "kl", "float32")
    assert (
        len(made.samples.questions) == 96
        and all(each.answers for each in made.samples.questions)
        and made.samples.searched == 96
    )
    assert plan(tmp_path, speedup=1.5).keeps == plan(tmp_path, max_drop=0.01).keeps == ()
    assert plan(tmp_path, keep=[0.2, 0.1, 0.2]).keeps == (0.2, 0.1)
    assert plan(tmp_path, layers=[4, 1, 4]).candidate_layers == (1, 4)


@pytest.mark.parametrize(
    ("options", "message", "names"),
    [
        ({"layers": [2, 8]}, "cannot be pruned at layer 8; choose from 0 to 7", ("layers",)),
        ({"keep": [0.2], "speedup": 1.5}, "give one budget, not keep and speedup", ("keep", "speedup")),
        ({"keep": []}, "keep takes one ratio or more", ("keep",)),
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
    assert plan(tmp_path, other, data=SAMPLES, samples=3).samples.warning
    with pytest.raises(DataError, match="needs an `answer` with every sample"):
        plan(tmp_path, other, data=SAMPLES, objective="accuracy")


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


@pytest.fixture
def shots(tmp_path) -> Path:
    """Seven images in a folder and one in a folder of it, beside what is none."""
    folder = tmp_path / "shots"
    (folder / "more").mkdir(parents=True)
    for number in range(7):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    Image.new("RGB", (4, 4)).save(folder / "more" / "UPPER.JPG")
    (folder / "notes.txt").write_text("no image")
    (folder / "looks.png").mkdir()
    return folder


def write(file: Path, *lines: object) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def asked(samples: Samples) -> list[tuple[str, str]]:
    return [(question.images[0].name, question.prompt) for question in samples.questions]


def test_a_folder_with_prompts(shots, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufefffirst ?\n\n  second ?  \r\nthird ?", encoding="utf-8")
    samples = read_samples(shots, prompts, most=96)
    assert (samples.name, samples.warning) == ("shots", "")
    assert sorted(asked(samples)) == [
        *((f"{number}.png", ("first ?", "second ?", "third ?")[number % 3]) for number in range(7)),
        ("UPPER.JPG", "second ?"),
    ]


def test_a_folder_without_prompts_is_asked_generic_ones_and_says_so(shots):
    samples = read_samples(shots, most=96)
    assert samples.warning == GENERIC_WARNING
    assert {prompt for _, prompt in asked(samples)} == set(GENERIC_PROMPTS)


def test_a_file_has_its_own_prompts(shots, tmp_path):
    file = write(
        tmp_path / "asked.jsonl",
        {"image": "shots/0.png", "prompt": "what ?", "answer": "a"},
        {"images": ["shots/1.png", "shots/2.png"], "prompt": "which ?", "answer": ""},
    )
    samples = read_samples(file, most=96)
    assert samples.name == "asked.jsonl" and not samples.warning
    assert sorted(len(question.images) for question in samples.questions) == [1, 2]
    with pytest.raises(DataError, match="has its own prompts") as refused:
        read_samples(file, file, most=96)
    assert refused.value.options == ("prompts",)


def test_the_seed_is_of_the_order_and_of_the_draw(shots):
    order = asked(read_samples(shots, most=96))
    assert order == asked(read_samples(shots, most=96)) != asked(read_samples(shots, most=96, seed=1))
    assert sorted(order) == sorted(asked(read_samples(shots, most=96, seed=1)))
    for most in (1, 3):
        assert asked(read_samples(shots, most=most)) == order[:most]


def test_what_is_beyond_the_search_is_held_out_if_it_is_enough(shots):
    for number in range(7, 60):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(shots / f"{number}.png")
    sizes = {}
    for most in (1, 30, 37, 38, 61, 96):
        samples = read_samples(shots, most=most)
        sizes[most] = (samples.searched, len(samples.questions) - samples.searched)
        assert samples.digest == read_samples(shots, most=1).digest, "of the data, however many are drawn"
    assert sizes == {1: (1, 0), 30: (30, 30), 37: (37, FEWEST_HELD_OUT), 38: (38, 0), 61: (61, 0), 96: (61, 0)}


def test_what_has_no_samples_is_one_line(shots, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("où ?".encode("latin-1"))
    for data, prompts, message in (
        (tmp_path / "empty", None, "has no images"),
        (tmp_path / "none", None, "cannot read questions"),
        (tmp_path / "blank.txt", None, "has no questions"),
        (shots, tmp_path / "blank.txt", "has no prompts"),
        (shots, tmp_path / "latin.txt", "it is not UTF-8"),
        (shots, tmp_path / "none.txt", "No such file"),
        (shots, shots, "Is a directory"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            read_samples(data, prompts, most=96)
        assert "\n" not in str(refused.value)


def test_outputs_beside_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration in the folder of its images goes on after a stop, and replaces its own recipe; images stay."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "o.json", "o.html", "o.json.progress"):
        Path(name).write_bytes(b"x")
    settings = CalibrationSettings(data=Path(), keep=(0.3,))
    plan_calibration("tiny-llava", Path("o.json"), settings, force=True)
    with pytest.raises(OutputError, match=r"a\.png: it is read too"):
        plan_calibration("tiny-llava", Path("a.png"), settings, force=True)

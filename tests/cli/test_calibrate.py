"""`iwp-export calibrate`: a recipe and its page, one line for what is wrong, and Ctrl-C at any time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from iwp_export.bundle.recipe import read_recipe
from iwp_export.bundle.store import Bundle
from iwp_export.cli.main import main
from iwp_export.scorer import Scorer
from tests.cli.refusals import fails
from tests.conftest import graphs_of

SMALL = ["calibrate", "tiny-llava", "--samples", "2", "--layers", "4"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A recipe that a run without a stop wrote, with its page. Do not change it."""
    recipe: Path = tmp_path_factory.mktemp("made") / "recipe.json"
    assert main([*SMALL, "-o", str(recipe)]) == 0
    assert "<html" in recipe.with_suffix(".html").read_text()
    return recipe


@pytest.fixture(autouse=True)
def page(monkeypatch):
    """In the place of the page, whose drawing takes seconds; `made` draws it."""
    write = "iwp_export.calibrator.calibration.write_page"
    monkeypatch.setattr(write, lambda path, title, subtitle, views: path.write_text("page"))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_it_writes_and_prints(capsys, tmp_path, made):
    assert main([*SMALL, "-o", str(tmp_path / "new" / "recipe.json")]) == 0
    shown = capsys.readouterr()
    assert files(tmp_path / "new") == {"recipe.json", "recipe.html"}
    assert shown.err == ""
    recipe = read_recipe(tmp_path / "new" / "recipe.json")
    assert recipe == read_recipe(made)
    for line in recipe.verdict:
        assert line in shown.out
    assert "differs from the paper's settings in" in shown.out and "wrote " in shown.out
    assert shown.out.endswith(f"export with it: iwp-export tiny-llava --recipe {tmp_path / 'new' / 'recipe.json'}\n")


def test_json_and_the_name_that_is_left_out(capsys, tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(made.read_text())
    assert files(tmp_path) == {"tiny-llava.recipe.json", "tiny-llava.recipe.html"}


def test_what_is_there_is_replaced_by_force_alone(capsys, tmp_path, made):
    recipe = tmp_path / "recipe.json"
    recipe.write_text("mine")
    assert fails(capsys, *SMALL, "-o", recipe).endswith("(-o, --force)")
    assert recipe.read_text() == "mine" and files(tmp_path) == {"recipe.json"}
    assert main([*SMALL, "-o", str(recipe), "--force"]) == 0
    assert read_recipe(recipe) == read_recipe(made)


def test_ctrl_c_and_a_second_start(capsys, tmp_path, monkeypatch, made):
    score, left = Scorer.score, [20]

    def interrupted(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return score(self, *arguments)

    monkeypatch.setattr(Scorer, "score", interrupted)
    recipe = tmp_path / "recipe.json"
    assert main([*SMALL, "-o", str(recipe)]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert files(tmp_path) == {"recipe.json.progress"}
    left[0] = 10**6
    assert main([*SMALL, "-o", str(recipe)]) == 0
    assert json.loads(recipe.read_text()) == json.loads(made.read_text())
    assert files(tmp_path) == {"recipe.json", "recipe.html"}
    assert 10**6 - left[0] < 2 * 17  # and did not begin anew


def test_an_export_takes_the_recipe(capsys, tmp_path, made, half_bundle):
    bundle = tmp_path / "out.bundle"
    with graphs_of(half_bundle):
        assert main(["tiny-llava", "--recipe", str(made), "-o", str(bundle)]) == 0
    assert Bundle.open(bundle).manifest.pruning == read_recipe(made).settings


def test_the_fastest_within_a_drop(capsys, tmp_path):
    assert main([*SMALL, "--max-drop", "1%", "-o", str(tmp_path / "r.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["search"]["budget"] == "at most 1.0 % of the unpruned score lost"
    assert len(found["candidates"]) == 14 * 4 + len([1 for each in found["candidates"] if each["role"] == "control"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0.3", "--speedup", "2"], "not allowed with argument --keep"),
        (["--max-drop", "1%", "--speedup", "2"], "not allowed with argument --max-drop"),
        (["--max-drop", "a lot"], "must be a share such as 1% or 0.01"),
        (["--objective", "speed"], "invalid choice"),
        (["--sample", "2"], "unrecognized arguments"),
    ],
)
def test_what_the_parser_refuses(capsys, options, message):
    with pytest.raises(SystemExit) as left:
        main(["calibrate", "tiny-llava", *options])
    assert left.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "1.5"], "keep must be a number from 0.0001 to 1"),
        (["--speedup", "99"], "makes the prefill 99 times as fast"),
        (["--max-drop", "150%"], "max_drop must be a share"),
        (["--layers", "8"], "cannot be pruned at layer 8"),
        (["--threads", "0"], "threads must be 1 or more"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--data", "nowhere"], "cannot read questions from nowhere"),
        (["--prompts", "nowhere"], "has its own prompts"),
        (["-o", "page.html"], "would be the recipe and its page"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "calibrate", "tiny-llava", "--samples", "2", *options)
    assert message in line and line.isprintable() and files(tmp_path) == set()


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.backends.backend_svg"])
def test_a_missing_matplotlib_is_one_line_at_once(capsys, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_svg", None)
    monkeypatch.setattr(Scorer, "__init__", lambda *arguments: pytest.fail("the model was loaded"))
    line = fails(capsys, *SMALL, "-o", tmp_path / "recipe.json")
    assert "pip install 'iwp-export[report]'" in line and files(tmp_path) == set()


def test_a_file_in_the_place_of_the_scores_is_kept(tmp_path, capsys):
    (tmp_path / "recipe.json.progress").write_bytes(b"\xff\xfe\0not ours")
    assert "is another file" in fails(capsys, *SMALL, "-o", tmp_path / "recipe.json")
    assert (tmp_path / "recipe.json.progress").read_bytes() == b"\xff\xfe\0not ours"

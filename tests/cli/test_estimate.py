"""`iwp-export estimate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from iwp_export import api
from iwp_export.cli.main import main
from iwp_export.models import ALIASES


@pytest.fixture
def folder(tmp_path):
    """tiny-llava's configuration, without weights."""
    (tmp_path / "model").mkdir()
    shutil.copyfile(Path(ALIASES["tiny-llava"]) / "config.json", tmp_path / "model" / "config.json")
    return str(tmp_path / "model")


def test_estimate_prints_both_sides_the_verdict_and_what_it_assumes(capsys):
    assert main(["estimate", "tiny-llava", "--device", "orin-nano", "--keep", "0.3", "--layer", "4"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "all tokens",
        "pruned",
        "prefill",
        "decode",
        "64 new tokens",
        "Fits: ",
        "102.4 GB/s",
        "at the input of",
    ):
        assert part in shown
    assert "20 of 64 stay" in shown and "are not usable" in shown


def test_json_has_figures_and_words(capsys):
    options = ["--recipe", "paper", "--keep", "0.5", "--new-tokens", "8", "--text-tokens", "32", "--json"]
    assert main(["estimate", "tiny-llava", "--device", "thor", *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["prompt"] == {"visual": 64, "text": 32, "new": 8, "layer": 4, "kept": 32}
    before, after = shown["unpruned"], shown["pruned"]
    assert before["cache_bytes"] == 8 * (64 + 32 + 8) * 2 * 64 * 2
    assert after["cache_bytes"] == (4 * (64 + 40) + 4 * (32 + 40)) * 2 * 64 * 2
    assert shown["fits"] is True and shown["operations_ratio"] > 1
    assert len(shown["verdict"]) == 2 and shown["assumptions"] and shown["device"]["source"]


def test_a_configuration_alone_is_enough(folder, capsys):
    assert main(["estimate", folder, "--device", "agx-orin"]) == 0
    assert "the paper's" in capsys.readouterr().out
    assert main(["estimate", "tiny-llava", "--device", "agx-orin"]) == 0
    assert "shipped recipe tiny-llava.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "nano"], "no device 'nano'; there are: orin-nano, orin-nx"),
        (["--weights", "int3"], "no weights 'int3'; there are: fp16, int8, int4 (--weights)"),
        (["--keep", "0"], "keep must be a number from 0.0001 to 1"),
        (["--layer", "8"], "tiny-llava cannot be pruned at layer 8; choose layer 0 to 7 (--layer)"),
        (["--images", "0"], "images must be a whole number of 1 or more, got 0 (--images)"),
        (["--new-tokens", "-1"], "new_tokens must be a whole number of 1 or more, got -1 (--new-tokens)"),
        (["--images", "4"], "are more than the 256 of tiny-llava"),
        (["--recipe", "no.json"], "no.json"),
    ],
)
def test_bad_input_costs_one_line(options, said, capsys):
    assert main(["estimate", "tiny-llava", "--device", "orin-nano", *options]) == 1
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""


def test_an_unknown_model_costs_one_line(capsys):
    assert main(["estimate", "no-model", "--device", "thor"]) == 1
    assert "no model 'no-model'" in capsys.readouterr().err


def test_a_tower_of_another_kind_is_refused(folder, capsys):
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config["vision_feature_layer"] = [-1, 1]
    path.write_text(json.dumps(config))
    assert api.estimate(folder, "thor").prompt.visual == 64  # two layers, joined
    config["vision_config"]["model_type"] = "pixtral"
    path.write_text(json.dumps(config))
    assert main(["estimate", folder, "--device", "thor"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1

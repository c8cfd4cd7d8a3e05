"""Monitors of tiny-llava against transformers' own attention and against a second way to hide the image."""

from __future__ import annotations

import json
import math
import sys
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.evaluate import answers_with_kept, layer_curve, load_checkpoint, prepare
from iwp_export.backends.torch.decoder import Projected, Stream
from iwp_export.exporter.loading import open_live
from iwp_export.exporter.plan import plan_export
from iwp_export.exporter.settings_source import PAPER
from iwp_export.monitors.__main__ import main
from iwp_export.monitors.attention import look_at
from iwp_export.monitors.figures import Monitors
from iwp_export.monitors.measure import Monitoring
from iwp_export.questions import DataSet, Question, read_questions

FOLDER = Path(__file__).parents[2] / "iwp_export" / "assets" / "tiny_llava"
QUESTIONS = list(islice(read_questions(HELDOUT), 6))
NO_ANSWERS = [Question(question.images, question.prompt) for question in QUESTIONS[:2]]


@pytest.fixture(scope="module")
def monitoring() -> Monitoring:
    plan = plan_export("tiny-llava", recipe=PAPER)
    return Monitoring(*open_live(plan, "float32"), plan.settings)


@pytest.fixture(scope="module")
def found(monitoring: Monitoring) -> Monitors:
    return monitoring.measure(DataSet("some", tuple(QUESTIONS)), keeps=(0.5,))


def test_uniform_attention_by_hand() -> None:
    """Zero queries weigh what they see alike: text 2 sees 3 tokens, text 3 sees 4, of which 2 are visual."""
    stream = Stream(torch.zeros(1, 4, 8), (torch.zeros(1), torch.zeros(1)), torch.tensor([[0, 1, -1, -1]]))
    query = torch.zeros(1, 4, 4, 2)
    projected = Projected(query, query[:, :2], query[:, :2], query, torch.randn(1, 2, 4, 2))
    seen = look_at(stream, projected, 4, 1.0)
    assert seen.entropy == pytest.approx((math.log(3) + math.log(4)) / 2)
    assert seen.visual == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert seen.seen == 2
    assert look_at(stream, projected, 3, 1.0).entropy == pytest.approx(math.log(3))  # an answer's tokens do not ask


def test_attention_is_that_of_transformers(found: Monitors, monitoring: Monitoring) -> None:
    model, processor = load_checkpoint(FOLDER, torch.float32)
    model.set_attn_implementation("eager")
    entropies, shares = [], []
    for inputs in (next(prepare(processor, [question])) for question in QUESTIONS):
        with torch.no_grad():
            weights = torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0]  # [L, H, S, S]
        visual = inputs["input_ids"][0] == model.config.image_token_id
        asking = (~visual) & (visual.cumsum(0) > 0)
        rows: Tensor = weights[:, :, asking]
        entropies.append(torch.special.entr(rows).sum(-1).mean((1, 2)))
        shares.append(rows[..., visual].sum(-1).mean((1, 2)))
    expected = torch.stack(entropies).mean(0), torch.stack(shares).mean(0)
    assert [each.entropy.mean for each in found.attention] == pytest.approx(expected[0].tolist(), abs=1e-4)
    assert [each.visual.mean for each in found.attention] == pytest.approx(expected[1].tolist(), abs=1e-4)


def test_pruning_changes_attention_from_its_layer_on(found: Monitors) -> None:
    layer = found.pruning_layer
    for each in found.attention:
        if each.layer < layer:
            assert (each.retention, each.entropy_pruned, each.visual_pruned) == (1, each.entropy, each.visual)
        else:
            assert each.retention == math.ceil(found.keep * 64) / 64
            assert each.entropy_pruned.mean < each.entropy.mean


def test_the_curve_is_that_of_masks_in_transformers(found: Monitors) -> None:
    model, processor = load_checkpoint(FOLDER, torch.float32)
    none = torch.zeros(len(QUESTIONS), 64, dtype=torch.bool)
    for point in found.depth[:-1]:
        words = answers_with_kept(model, processor, QUESTIONS, none, point.layer)
        right = [word == question.answer for word, question in zip(words, QUESTIONS, strict=True)]
        assert point.left.accuracy is not None
        assert point.left.accuracy.mean == pytest.approx(sum(right) / len(right))
    curve = layer_curve(FOLDER, QUESTIONS)
    assert [curve[str(point.layer)]["all"] for point in found.depth[:-1]] == pytest.approx(
        [point.left.accuracy.mean for point in found.depth[:-1] if point.left.accuracy], abs=1e-4
    )


def test_the_ends_of_the_curves(found: Monitors) -> None:
    assert [point.layer for point in found.depth] == list(range(9))
    assert [point.keep for point in found.budget] == [1, 0.5, found.keep]
    assert found.budget[0].left == found.depth[-1].left
    assert found.whole.mean > found.blind.mean + 0.4
    assert found.depth[-1].left.kl.mean == 0 < found.depth[0].left.kl.mean


def test_without_answers_the_measure_is_agreement(monitoring: Monitoring) -> None:
    found = monitoring.measure(DataSet("others", tuple(NO_ANSWERS)), keeps=())
    assert found.measure == "agreement"
    assert found.whole.mean == 1 and found.depth[-1].left.accuracy is None and not found.depth[-1].left.kinds


def test_the_command_writes_figures_and_charts(tiny_bundle: Path, tmp_path: Path) -> None:
    output, drawing = tmp_path / "monitors.json", tmp_path / "monitors.svg"
    options = ["--keep", "0.2", "--threads", "1", "-o", str(output), "--picture", str(drawing)]
    assert main([str(tiny_bundle), "--limit", "2", *options]) == 0  # the questions that ship for tiny-llava
    report = json.loads(output.read_text())
    assert report["monitors"]["questions"] == 2 and len(report["rules"]) == 3 and report["verdict"]
    texts = [element.text for element in ElementTree.parse(drawing).iter() if element.tag.endswith("}text")]
    assert "no visual token from layer" in texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere/at/all"], "nowhere/at/all"),
        (["--keep", "2"], "keep must be"),
    ],
)
def test_mistakes_cost_one_line(
    tiny_bundle: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "1", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ") and message in line


def test_without_torch_it_says_so(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "iwp_export.monitors.measure", None)
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "1"]) == 1
    assert (
        "monitors need torch and the checkpoint; to get it: pip install 'iwp-export[export]'" in capsys.readouterr().err
    )

"""lmms-eval itself, with tiny-llava's held-out questions as a task of its own."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.tiny_llava import HELDOUT
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.errors import BundleError, RequestError, SettingsError
from iwp_export.harnesses import lmms_eval as plugin
from iwp_export.questions import open_data, read_questions
from iwp_export.runtime.pipeline import Pipeline
from tests.harnesses.installed import needs_lmms_eval

ROOT = Path(__file__).parents[2]
TASK = ROOT / "calibration" / "tiny_llava" / "lmms_eval"
QUESTIONS = 12
KEEP = 0.05  # wrong answers among the right ones


def test_the_package_declares_the_entry_point() -> None:
    declared = re.search(
        r'entry-points."lmms_eval.models"\]\niwp_export = "(.*)"', (ROOT / "pyproject.toml").read_text()
    )
    assert declared is not None
    module, function = declared[1].split(":")
    assert (module, getattr(plugin, function)) == (plugin.__name__, plugin.manifest)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Any:
    from iwp_export.harnesses.lmms_eval_model import IwpExport

    return IwpExport(str(tiny_bundle), keep=KEEP, threads=1)


@needs_lmms_eval
def test_it_is_a_model_of_lmms_eval() -> None:
    from lmms_eval.models import get_model

    if not entry_points(group="lmms_eval.models", name=plugin.NAME):
        pytest.skip("iwp-export was installed before it had this entry point: pip install -e .")
    assert get_model("iwp_export") is get_model("iwp-export")
    assert f"{get_model('iwp_export').__module__}.IwpExport" == plugin.CLASS


@needs_lmms_eval
def test_its_score_of_a_local_task_is_ours(
    model: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks = TaskManager(include_path=os.fspath(TASK), include_defaults=False)
    theirs: Any = simple_evaluate(model, tasks=["tiny_llava"], limit=QUESTIONS, task_manager=tasks, bootstrap_iters=0)
    questions = open_data(HELDOUT, "", QUESTIONS)
    ours = measure_accuracy(Pipeline.open(tiny_bundle, threads=1), questions, [KEEP]).at[1]
    assert ours.score is not None and 0 < ours.score.mean < 1
    assert theirs["results"]["tiny_llava"]["exact_match,none"] == pytest.approx(ours.score.mean)
    samples = {sample["doc_id"]: sample["exact_match"] for sample in theirs["samples"]["tiny_llava"]}
    assert [samples[number] for number in range(QUESTIONS)] == list(ours.scores)


def ask(model: Any, content: list[dict[str, Any]], **options: Any) -> str:
    model.task_dict = {"t": {"test": [content]}}
    arguments = ("", lambda document: [{"role": "user", "content": document}], options, 0, "t", "test")
    (answer,) = model.generate_until([SimpleNamespace(args=arguments)])
    assert answer.token_counts.output_tokens >= 1
    return str(answer.text)


@needs_lmms_eval
def test_images_come_as_files_or_pixels_and_answers_end_where_the_task_says(model: Any) -> None:
    question = next(read_questions(HELDOUT))
    text = {"type": "text", "text": question.prompt}
    as_file = ask(model, [{"type": "image", "url": str(question.images[0])}, text], max_new_tokens=4)
    pixels = Image.open(question.images[0])
    assert ask(model, [{"type": "image", "url": pixels}, text], image_aspect_ratio="pad", top_p=0) == as_file
    assert ask(model, [{"type": "image", "url": pixels}, text], until=[as_file[-1]]) == as_file.split(as_file[-1])[0]
    assert isinstance(ask(model, [{"type": "image", "url": pixels}, text], temperature=1.0, do_sample=True), str)


@needs_lmms_eval
@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ({"type": "video", "url": "a.mp4"}, {}, "a message has video: only images and text"),
        ({"type": "image", "url": "none.png"}, {}, "there is no such file"),
        (
            {"type": "image", "url": Image.fromarray(np.zeros((8, 8, 3), np.uint8))},
            {"num_beams": 5},
            "num_beams must be 1",
        ),
        (
            {"type": "image", "url": Image.fromarray(np.zeros((8, 8, 3), np.uint8))},
            {"typical_p": 1},
            "typical_p are not",
        ),
    ],
)
def test_what_is_not_supported_is_named_with_its_task(
    model: Any, part: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"task t, document 0: .*{message}"):
        ask(model, [part, {"type": "text", "text": "what ?"}], **options)


@needs_lmms_eval
def test_arguments_that_are_not_possible_are_refused(
    model: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, options, message in (
        (RequestError, {"batch_size": 8}, "batch_size must be 1, got 8"),
        (RequestError, {"device": "cuda:0"}, "say provider=cuda"),
        (SettingsError, {"keep": 2.0}, "keep must be"),
        (BundleError, {"path": str(tmp_path)}, "no manifest.json"),
    ):
        with pytest.raises(error, match=message):
            type(model)(**{"path": str(tiny_bundle), **options})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="runs in one process"):
        type(model)(str(tiny_bundle))
    for unsupported in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            unsupported([])

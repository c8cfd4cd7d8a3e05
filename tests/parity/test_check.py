"""Parity passes where an artefact is its reference, for every family, and names the stage where it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from iwp_export.bundle.schema import from_json, to_json
from iwp_export.errors import CheckpointError, DataError, RequestError
from iwp_export.models import ALIASES
from iwp_export.parity import check
from iwp_export.parity.check import Comparison, check_parity, open_reference
from iwp_export.parity.checkpoint import CheckpointReference
from iwp_export.parity.figures import Parity, Stage
from iwp_export.parity.observation import ArtefactReference, Choice, Observation, samples_of
from iwp_export.parity.probes import with_probes
from iwp_export.parity.verdict import gates, view
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view import terminal
from tests.backends.trt.fake_trt import make_session
from tests.parity.made_up import K, N, S, T, observation, rows, stacked
from tests.parity.tampered import tampered

SETTINGS = PruningSettings(layer=1)
STAGES: tuple[Stage, ...] = get_args(Stage)


def describe(parity: Parity) -> str:
    return terminal.render([view(parity)])


SIZES = ((48, 64), (37, 300), (90, 41))


def failed(parity: Parity) -> list[str]:
    return [gate.name for gate in gates(parity) if not gate.passed]


def test_a_bundle_is_its_checkpoint(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question], tiny_bundle: Path
) -> None:
    parity = check_parity(pipeline, checkpoint, questions, (1, 0.2), 4, hidden_states=True, path=tiny_bundle)
    found = {gate.name: gate for gate in gates(parity)}
    assert all(gate.passed for gate in found.values()), describe(parity)
    assert list(found) == [
        *("integrity", "same checkpoint", "prompt", "pixels", "features", "hidden states", "caches", "logits", "text"),
        *("next token", "kept tokens", "greedy tokens"),
    ]
    assert found["integrity"].measured.startswith("10 files, ")
    assert (parity.samples, parity.dtype, parity.differences, parity.notes) == (3, "float32", (), ())
    rows = {stage.stage: stage.rows for stage in parity.keeps[1].stages}
    text = 5 * 4 - 5  # the last token of an answer is not run; two probes are run at every ratio here
    asked, _ = with_probes(questions, checkpoint, 4)
    lengths = [len(checkpoint.see(sample)[0]) for sample in asked if sample.is_run(0.2, (1, 0.2))]
    prompt = sum(lengths)
    kept = prompt - 6 * 64 + 6 * 13
    assert rows["logits"] == 20 and len(lengths) == 5
    assert rows["caches"] == 2 * (4 * (prompt + text) + 4 * (kept + text))
    assert rows["hidden states"] == 5 * (prompt + text) + 3 * (kept + text)
    assert (
        "matches its reference within float32 rounding (3 samples and 11 probes at keep 1, 0.2, 4 tokens each)"
        in describe(parity)
    )


def test_figures_survive_json(pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question]) -> None:
    broken = tampered(pipeline, logits=lambda logits: logits * np.float32(np.nan))
    for parity in (check_parity(each, checkpoint, questions[:1], (0.3,), 2) for each in (pipeline, broken)):
        again = from_json(Parity, json.loads(json.dumps(to_json(parity), allow_nan=False)), "")
        assert again == parity and gates(again) == gates(parity)


def test_several_images_of_another_family(random_next_bundle: Path, tmp_path: Path) -> None:
    """LLaVA-NeXT needs the images' sizes beside their pixels, and pads the tiles of several images."""
    images = []
    for size in SIZES:
        images.append(tmp_path / f"{size}.png")
        Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)).save(images[-1])
    asked = [Question((images[0],), "how many ?"), Question(tuple(images), "what is the red digit ?")]
    pipeline = Pipeline.open(random_next_bundle, threads=1)
    parity = check_parity(pipeline, open_reference(pipeline), asked, (1, 0.3), 3, hidden_states=True)
    assert failed(parity) == [], describe(parity)
    relative = {stage.stage: stage.relative for keep in parity.keeps for stage in keep.stages}
    assert relative["features"] and relative["caches"] and relative["logits"]


@pytest.mark.parametrize("against", ["bundle", "engine"])
def test_an_engine_and_a_bundle(pipeline: Pipeline, tiny_bundle: Path, questions: list[Question], against: str) -> None:
    """Each against the other: an engine shows no states between layers, and says so."""
    engine = Pipeline.of(pipeline.manifest, tiny_bundle / "processor", make_session(tiny_bundle)[0])
    if against == "bundle":
        mine, reference = engine, open_reference(engine, str(tiny_bundle), threads=1)
        who = "artefact"
    else:
        mine, reference = pipeline, ArtefactReference(engine, "x.plan")
        who = "reference"
    parity = check_parity(mine, reference, questions[:1], (1, 0.3), 2, hidden_states=True)
    assert failed(parity) == [], describe(parity)
    assert len(parity.notes) == 1 and f"the {who} has none to show" in parity.notes[0]


def test_other_features_give_other_choices(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question]
) -> None:
    parity = check_parity(tampered(pipeline, pixels=np.negative), checkpoint, questions[:2], (1, 0.2), 4)
    assert {"features", "caches", "logits", "kept tokens"} <= set(failed(parity))
    assert "pixels" not in failed(parity)  # what the processor made is right; the vision graph got something else
    kept = parity.keeps[1].kept
    assert (kept.choices, kept.differing, kept.followed) == (4, 4, 4)
    assert all(gap.gap and gap.gap > 0.01 and gap.own_gap is not None for gap in kept.gaps)
    assert "The first stage that fails is features" in describe(parity)


def test_logits_beyond_rounding_fail(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question]
) -> None:
    parity = check_parity(
        tampered(pipeline, logits=lambda logits: logits + np.float32(0.01)), checkpoint, questions[:1], (1, 0.3), 2
    )
    assert failed(parity) == ["logits"]
    [logits] = [stage for stage in parity.keeps[0].stages if stage.stage == "logits"]
    assert logits.absolute == pytest.approx(0.01, abs=1e-4)
    assert ", keep 1, generated token " in logits.where


def test_numbers_that_are_not_finite_fail_and_are_placed(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question]
) -> None:
    def poison(part: Any, layer: int) -> Any:
        part = part.copy()
        if layer == 5:
            part[1, 7, 3] = np.inf
        return part

    parity = check_parity(tampered(pipeline, cache=poison), checkpoint, questions[:1], (0.3,), 2)
    assert failed(parity) == ["caches"]
    token = checkpoint.observe(samples_of(questions)[0], 0.3, 1).kept[7]
    where = {gate.name: gate.where for gate in gates(parity)}["caches"]
    assert where == f"1 (000.png), keep 0.3, layer 5, key, token {token}: a number is not finite"


def test_a_tie_broken_otherwise_is_followed(
    pipeline: Pipeline,
    checkpoint: CheckpointReference,
    questions: list[Question],
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another choice, and everything after it right: kept tokens alone say so, and a tie would pass."""
    settings = replace(pipeline.manifest.pruning, importance="random", penalty=0.0)
    manifest = replace(pipeline.manifest, pruning=settings)
    other = CheckpointReference(manifest)
    choosing = Pipeline.of(pipeline.manifest, tiny_bundle / "processor", other.session)
    parity = check_parity(choosing, checkpoint, questions[:1], (0.3,), 3)
    assert failed(parity) == ["kept tokens"]
    assert parity.keeps[0].kept.followed == 3
    monkeypatch.setattr(check, "selection_gap_of_pairs", lambda *args, **options: 1e-6)
    monkeypatch.setattr(check, "normalised", np.zeros_like)
    parity = check_parity(choosing, checkpoint, questions[:1], (0.3,), 3)
    assert failed(parity) == [] and parity.keeps[0].kept.differing == 3


def test_without_what_was_chosen_from_a_tie_cannot_be_told(
    pipeline: Pipeline, questions: list[Question], tiny_bundle: Path
) -> None:
    """Then layers below the choice are compared, and nothing after it."""
    engine = Pipeline.of(pipeline.manifest, tiny_bundle / "processor", make_session(tiny_bundle)[0])

    def other(kept: Any) -> Any:
        if len(kept) < 20:  # a generated token, or the second of two calls
            return kept
        return np.concatenate([kept[:5], np.arange(kept[4] + 1, kept[4] + 1 + 12), kept[17:]])

    parity = check_parity(tampered(pipeline, kept=other), ArtefactReference(engine, "x.plan"), questions[:1], (0.3,), 2)
    found = {gate.name: gate for gate in gates(parity)}
    assert not found["kept tokens"].passed and "the reference cannot tell" in found["kept tokens"].measured
    assert found["caches"].passed
    assert not found["logits"].passed and found["logits"].measured == "nothing was compared"


def test_a_checkpoint_without_a_chat_template(pipeline: Pipeline, questions: list[Question], tmp_path: Path) -> None:
    shutil.copytree(ALIASES["tiny-llava"], tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    reference = CheckpointReference(pipeline.manifest, str(tmp_path / "mute"))
    with pytest.raises(RequestError, match=r"transformers cannot render 1 \(000\.png\) for checkpoint mute"):
        check_parity(pipeline, reference, questions[:1])


def test_what_cannot_be_compared(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="there is nothing to compare: give questions"):
        check_parity(pipeline, checkpoint)
    with pytest.raises(DataError, match="nothing to compare with at nowhere: give `checkpoint`, a bundle's folder"):
        open_reference(pipeline, "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_reference(pipeline, checkpoint=str(tmp_path))


def flaws(ours: Observation, theirs: Observation) -> dict[str, str]:
    comparison = Comparison(0.5, SETTINGS, inside=True)
    comparison.add_stages("one", ours, theirs)
    return {name: stage.flaw for name, stage in comparison.stages.items() if stage.flaw}


def changed(sketches: Sequence[Any], number: int, row: int) -> list[Any]:
    """Sketches of several tensors with other projections of a row in one of them."""
    copies = [each.copy() for each in sketches]
    copies[number][row, 1:] += 9
    return copies


def test_what_cannot_be_compared_is_placed() -> None:
    right = observation()
    assert flaws(right, right) == {}
    shorter, half = stacked(S + T - 1, S + T - 2, K + T - 1, K + T - 1), stacked(S + T - 1, S + T - 1)
    less, moved = {"0.pixel_values": rows(3)}, {"0.pack_index": np.array([0, 1, 2, 4, 3])}
    for changes, stage, says in (
        ({"cache": shorter}, "caches", "one, keep 0.5, layer 0, value: 11 rows, the reference has 12"),
        ({"cache": half}, "caches", "one, keep 0.5, layer 1, key: not there"),
        ({"features": stacked(3)}, "features", "one, image 2: not there"),
        ({"inputs": {**right.inputs, **less}}, "pixels", "one, image 1, pixel_values: 3 rows, the reference has 12"),
        ({"inputs": {**right.inputs, **moved}}, "pixels", "one, image 1, pack_index: 4 at 3, the reference has 3"),
        ({"inputs": {}}, "pixels", "one, image 1, pixel_values: not there"),
        ({"logits": right.logits[:, :19]}, "logits", "one, keep 0.5: shape [4, 19], the reference has [4, 20]"),
    ):
        found = flaws(replace(right, **changes), right)
        assert list(found) == [stage] and says in found[stage]


def test_the_worst_row_is_named_by_its_token_in_the_unpruned_prompt() -> None:
    right = observation()
    for row, name in ((3, "token 5"), (K + 1, "generated token 1")):
        comparison = Comparison(0.5, SETTINGS, inside=True)
        comparison.add_stages("one", replace(right, cache=changed(right.cache, 2, row)), right)
        caches = comparison.stages["caches"]
        assert caches.where == f"one, keep 0.5, layer 1, key, {name}"
        assert caches.cosine_where == "one, keep 0.5, layer 1, key"


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_choice_by_numbers_that_are_not_finite_is_a_flaw(whose: str) -> None:
    right = observation()
    assert right.choice is not None
    poisoned = replace(right, choice=Choice(np.full(N, np.nan, np.float32), right.choice.alike))
    ours, theirs = (poisoned, right) if whose == "ours" else (right, poisoned)
    comparison = Comparison(0.5, SETTINGS)
    assert not comparison.add_choice("one", replace(ours, kept=np.array([0, 1, 2, 5, 7, 8])), theirs)
    assert comparison.figures.kept.flaw == "one, keep 0.5: what tokens were chosen from is not finite"


def test_tokens_of_the_text_must_stay() -> None:
    right = observation()
    for kept, says in (
        ([0, 2, 3, 5, 7, 8], "tokens of the text were dropped"),
        ([0, 1, 3, 5, 7], "5 tokens went on, not 6"),
        ([0, 1, 5, 3, 7, 8], "kept_index does not rise"),
        ([0, 1, 3, 5, 7, 9], "kept_index does not rise within the prompt"),
    ):
        comparison = Comparison(0.5, SETTINGS, inside=True)
        assert not comparison.add_choice("one", replace(right, kept=np.array(kept)), right)
        assert says in comparison.figures.kept.flaw

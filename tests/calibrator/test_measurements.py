"""Scores are made once, whatever stopped the program in between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iwp_export.calibrator.journal import Journal
from iwp_export.calibrator.measurements import Measurements
from iwp_export.pruning.settings import PruningSettings
from tests.calibrator.fake import FakeScores, questions

SETTINGS = [PruningSettings(layer=layer, keep=0.5) for layer in (1, 2, 3)]
KEEPS = (0.5, 0.2, 0.1)
HEADER = {"model": "ab", "version": "1"}


def loss(settings: PruningSettings, sample: int) -> float:
    return settings.layer * 0.3 + sample * 0.1 + settings.keep


def work(measured: Measurements) -> list[list[float]]:
    """Rounds that overlap, as a search's do, and what is read of them."""
    measured.run("one", SETTINGS, 2)
    measured.run("two", [SETTINGS[0], SETTINGS[1], SETTINGS[0]], 4, with_answer=True)
    read = [measured.losses(each, range(2), "kl").tolist() for each in SETTINGS]
    read += [measured.losses(each, range(4), "accuracy").tolist() for each in SETTINGS[:2]]
    return [*read, [measured.runs], [measured.met(each) for each in SETTINGS]]


@pytest.mark.parametrize("keeps", [(), KEEPS])
def test_each_pair_is_scored_once(keeps):
    scores = FakeScores(loss)
    measured = Measurements(scores, questions(4), keeps)
    read = work(measured)
    times = max(1, len(keeps))
    assert set(scores.scored.values()) == {1}
    assert len(scores.scored) == (2 * 3 + 2 * 2) * times == measured.runs
    assert read[-1] == [4, 4, 2]
    assert max(scores.generated.values()) == 1  # and an answer is generated once, where it changed


def test_losses_are_means_over_the_keep_ratios():
    measured = Measurements(FakeScores(loss, limit=0.7), questions(2), KEEPS)
    measured.run("all", SETTINGS[:1], 2)
    np.testing.assert_allclose(measured.losses(SETTINGS[0], range(2), "kl"), [0.3 + 0.8 / 3, 0.4 + 0.8 / 3])
    np.testing.assert_allclose(measured.losses(SETTINGS[0], range(2), "agreement"), [1 / 3, 1 / 3])
    other = replace(SETTINGS[0], keep=0.3)  # not the first of the ratios: it stands for itself
    measured.run("other", [other], 1)
    assert measured.losses(other, range(1), "kl") == [0.6]


def test_answers_that_the_data_do_not_have_are_not_asked_for_again():
    scores = FakeScores(loss)
    measured = Measurements(scores, questions(2, answer=None))
    for _ in range(2):
        measured.run("all", SETTINGS, 2, with_answer=True)
    assert set(scores.scored.values()) == {1} and not scores.generated
    assert not measured.has_answers(SETTINGS[0], 2)
    assert [each.right for each in measured.unpruned(2)] == [None, None]


@pytest.mark.parametrize("keeps", [(), KEEPS])
@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_a_stopped_run_goes_on(tmp_path, keeps, stop):
    expected = work(Measurements(FakeScores(loss), questions(4), keeps))
    file = tmp_path / "journal"
    first = FakeScores(loss, stop=stop)
    measured = Measurements(first, questions(4), keeps, Journal(file, HEADER, 4))
    with pytest.raises(KeyboardInterrupt):
        work(measured)
    measured.close(finished=False)
    second = FakeScores(loss)
    measured = Measurements(second, questions(4), keeps, Journal(file, HEADER, 4))
    assert work(measured) == expected
    assert not set(first.scored) & set(second.scored)
    measured.close(finished=True)
    assert not file.exists()


def test_scores_that_nobody_asked_for_are_not_told(tmp_path):
    file = tmp_path / "journal"
    measured = Measurements(FakeScores(loss), questions(4), (), Journal(file, HEADER, 4))
    measured.run("some", SETTINGS, 1)
    measured.close(finished=False)
    measured = Measurements(FakeScores(loss), questions(4), (), Journal(file, HEADER, 4))
    assert (measured.runs, measured.met(SETTINGS[0])) == (0, 0)
    measured.run("one", SETTINGS[:1], 1)
    assert (measured.runs, measured.met(SETTINGS[0]), measured.met(SETTINGS[2])) == (1, 1, 0)
    measured.close(finished=False)

"""Caches that are what pruning leaves, and caches that are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iwp_export.latency.gates import gates
from iwp_export.latency.proof import READ_BACK, prove_dropped
from iwp_export.latency.workload import Ask
from tests.latency.made import latency, pipeline_on
from tests.runtime.toy import ToyCache, ToySession

ASK = Ask((np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8),), "what is it ?")


class KeepsAll(ToySession):
    """Says that it drops tokens, and does not."""

    def step(self, inputs, features, cache):
        output = super().step(replace(inputs, num_kept=inputs.input_ids.size), features, cache)
        return replace(output, kept_index=output.kept_index[: inputs.num_kept])


class LosesARow(ToySession):
    """Loses a row of its last layer."""

    def step(self, inputs, features, cache):
        output = super().step(inputs, features, cache)
        if inputs.input_ids.size > 1:
            cache.layers[1] = cache.layers[1][1:]
        return output


class DropsOne(ToySession):
    """Keeps a token fewer than it was asked to."""

    def step(self, inputs, features, cache):
        few = max(1, inputs.num_kept - (inputs.num_kept < inputs.input_ids.size))
        return super().step(replace(inputs, num_kept=few), features, cache)


class HoldsOthers(ToySession):
    """Caches other tokens than those that it says were kept, as many of them."""

    def step(self, inputs, features, cache):
        output = super().step(inputs, features, cache)
        if inputs.num_kept < inputs.input_ids.size:
            cache.layers[1] = cache.layers[1][::-1]
        return output


def checked(session):
    found = prove_dropped(pipeline_on(session), ASK, 0.25)
    return found, gates(latency(dropped=found))


def test_what_pruning_leaves():
    (pruned, unpruned), checks = checked(ToySession())
    text = unpruned.found[0] - 65
    assert pruned.expected == pruned.found == (text + 65, text + 17)
    assert unpruned.expected == unpruned.found == (text + 65, text + 65)
    assert pruned.how == READ_BACK and not pruned.flaw
    assert [gate.passed for gate in checks] == [True, True]


@pytest.mark.parametrize("kind", [KeepsAll, LosesARow, DropsOne, HoldsOthers])
def test_faults_fail_the_gate(kind):
    _, checks = checked(kind())
    dropped = next(gate for gate in checks if gate.name == "tokens-dropped")
    assert not dropped.passed and dropped.where and dropped.remedy


def test_what_the_session_reports_is_not_taken_where_the_buffers_can_be_read(monkeypatch):
    monkeypatch.setattr(ToyCache, "lengths", property(lambda self: (74, 26)))
    (pruned, _), checks = checked(KeepsAll())
    assert pruned.found[1] == pruned.found[0] and not checks[0].passed


def test_a_ratio_that_leaves_every_token_is_no_pruning():
    """0.999 of 64 tokens are 64: caches as long as they should be prove nothing."""
    found = prove_dropped(pipeline_on(ToySession()), ASK, 0.999)
    dropped, kept = gates(latency(dropped=found))
    assert (dropped.passed, kept.passed) == (False, True)
    assert "as long as the unpruned ones" in dropped.where


def test_text_alone_drops_nothing():
    pruned, unpruned = prove_dropped(pipeline_on(ToySession()), Ask((), "what is it ?"), 0.25)
    assert pruned.found == pruned.expected == unpruned.found

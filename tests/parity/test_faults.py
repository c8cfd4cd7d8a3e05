"""Each deliberate fault fails the gate that should catch it, and only a right artefact passes.

The whole table, and how often a right artefact passes, is `python -m tests.benchmarks.faults`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export.questions import Question
from tests.benchmarks.fault_list import FAULTS, Fault
from tests.benchmarks.fault_shop import PASSED, Workshop

FIRST = {fault.gate: fault.name for fault in reversed(FAULTS) if fault.quick}
"""One fault for each gate runs always, the others in `make test-slow`."""
PARAMETERS = [
    pytest.param(fault, id=fault.name, marks=() if FIRST[fault.gate] == fault.name else pytest.mark.slow)
    for fault in FAULTS
]


@pytest.fixture(scope="module")
def shop(tiny_bundle: Path, questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    pair = Question((questions[0].images[0], questions[1].images[0]), questions[0].prompt)
    return Workshop(tmp_path_factory.mktemp("faults"), tiny_bundle, questions[:2], [pair], new_tokens=3)


def test_a_right_artefact_passes(shop: Workshop) -> None:
    for outcome in (shop.judge(shop.bundle), shop.judge(shop.right, pairs=True)):
        assert (outcome.code, outcome.failed, outcome.error) == (PASSED, [], "")
        assert max(outcome.margins.values()) < 0.5, outcome.margins


@pytest.mark.parametrize("fault", PARAMETERS)
def test_a_fault_fails_its_gate(shop: Workshop, fault: Fault) -> None:
    outcome = fault.judge(shop)
    assert fault.caught(outcome), (outcome.code, outcome.failed, outcome.error)

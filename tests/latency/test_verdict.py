"""Verdicts of made-up benches, their gates, their view and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from iwp_export.bundle.schema import from_json, to_json
from iwp_export.latency.figures import Dropped, Energy, Latency, spread_of
from iwp_export.latency.verdict import gates, layers_of, view, warnings
from iwp_export.settings import BenchSettings
from iwp_export.view import terminal
from iwp_export.view.figures import Interval
from tests.latency.made import latency

SLOW_DECODE = latency(decode=(1.0, 1.0))


def said(made: Latency) -> str:
    return "\n".join(view(made).sentences)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            SLOW_DECODE,
            "prefill 1.80 (1.75 to 1.85) of 1.81 promised; end to end 1.26 (1.22 to 1.29) because decode takes 64.1 %: "
            "shorter answers or smaller weights would help more",
        ),
        (
            latency(prefill=(0.09, 0.05), decode=(5.0, 5.0)),
            "end to end 1.01 (0.98 to 1.04): no speed-up is shown; decode takes 97.8 %",
        ),
        (latency(prefill=(0.5, 0.9)), "end to end 0.66 (0.64 to 0.67): pruning makes it slower"),
        (latency(prefill=(1.8, 1.0), decode=(1e-9, 1e-9)), "; time to first token 1.75 (1.70 to 1.81)"),
    ],
)
def test_the_headline_says_what_was_gained_and_why_not_more(made, words):
    assert words in view(made).sentences[0]


def test_a_promise_that_is_missed_is_told():
    assert "slower than the operation count predicts" in said(latency(prefill=(0.6, 0.5)))
    assert "slower" not in said(latency())


def test_whether_tokens_were_dropped_is_in_the_verdict():
    assert "tokens were dropped: layers 0 to 1 hold 9, 2 holds 5" in said(latency())
    wrong = (Dropped("pruned", (9, 5), (9, 9)), Dropped("unpruned", (9, 9), (9, 9)))
    assert "TOKENS WERE NOT DROPPED" in said(latency(dropped=wrong)) and "layer 1: 9, not 5" in said(
        latency(dropped=wrong)
    )
    assert layers_of((9, 9, 5, 5, 5)) == "layers 0 to 1 hold 9, 2 to 4 hold 5"


def test_a_busy_machine_and_times_that_drift_are_warned_of():
    (line,) = warnings(latency(load=0.52))
    assert "the machine was busy before the bench (load average 0.52 a processor)" in line
    assert not warnings(latency(load=0.48))
    made = latency()
    for change, warned in ((0.3, True), (0.05, False)):
        times = {**made.pruned.times, "end_to_end": tuple(0.7 * (1 + change * i / 20) for i in range(20))}
        lines = warnings(replace(made, pruned=replace(made.pruned, times=times)))
        assert len(lines) == warned and all("more at the end than at first: warm up longer" in line for line in lines)


def test_the_whole_text():
    text = terminal.render([view(latency(energy=(Energy("VDD_IN", "module", 2.1, 4.1),)))])
    assert "1.80 (1.75 to 1.85)" in text
    assert "500*" in text and "a p99 means nothing of fewer than 100 runs, and there are 3" in text
    assert "6.0 GiB -> 5.0 GiB" in text
    assert "4.1 J -> 2.1 J an answer, of the module (VDD_IN)" in text
    assert "joules not measured: no power sensor" in text
    assert "its 95 % interval in this process" in text and "--repeat 5" in text
    assert "the mean of 3 processes" in terminal.render([view(latency(processes=3))])


def test_the_charts():
    whole, prefill = view(latency()).charts
    assert [(each.name, each.x[0]) for each in prefill.series] == [("unpruned", 900.0), ("pruned", 500.0)]
    assert whole.x.label == "end to end, ms" and whole.series[0].y[-1] == 1


def passed(limits: BenchSettings, made: Latency | None = None) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in gates(made or latency(), limits)}


def test_limits():
    always = {"tokens-dropped": True, "tokens-kept": True}
    assert passed(BenchSettings()) == always
    assert passed(BenchSettings(fail_if_slower="end-to-end")) == {**always, "faster-end-to-end": True}
    unsure = latency()
    unsure = replace(unsure, ratios={**unsure.ratios, "end_to_end": Interval(1.2, 1.0, 1.5)})
    assert passed(BenchSettings(fail_if_slower="end-to-end"), unsure)["faster-end-to-end"] is False
    assert passed(BenchSettings(fail_if_slower="prefill"), unsure)["faster-prefill"] is True
    assert passed(BenchSettings(max_ttft_ms=560.1))["max-ttft"] is True
    assert passed(BenchSettings(max_ttft_ms=559.9))["max-ttft"] is False


def test_a_p99_of_few_runs_passes_no_gate():
    assert passed(BenchSettings(max_p99_ms=1e6))["max-p99"] is False
    made = latency()
    phases = {**made.pruned.phases, "end_to_end": spread_of([0.7] * 98 + [0.9] * 2)}
    made = replace(made, pruned=replace(made.pruned, phases=phases))
    assert passed(BenchSettings(max_p99_ms=901), made)["max-p99"] is True
    assert passed(BenchSettings(max_p99_ms=800), made)["max-p99"] is False


def test_a_cache_of_too_few_layers_fails():
    made = latency(dropped=(Dropped("pruned", (9, 5, 5), (9, 5)), Dropped("unpruned", (9, 9), (9, 9))))
    assert passed(BenchSettings(), made)["tokens-dropped"] is False


def test_figures_are_json():
    made = latency(energy=(Energy("VDD_IN", "module", 2.0, 4.0),))
    assert from_json(Latency, json.loads(json.dumps(to_json(made))), "") == made

"""An estimate as text: a table, a verdict, and what was assumed."""

from __future__ import annotations

from iwp_export.estimator.prediction import Estimate, Side
from iwp_export.estimator.roofline import FITTED_ON, Range, Share
from iwp_export.tables import pairs, table

GB = 1e9
MOST = 0.5
"""From which part of the time on a phase is what the rest waits for."""
SHORT = 1e-3
"""Seconds of a step below which starting some hundred kernels takes longer than what they do."""
LITTLE = 1.1
"""A ratio below this is within any run's noise."""


def describe(estimate: Estimate) -> str:
    """The whole estimate as text for people."""
    device, prompt = estimate.device, estimate.prompt
    asked = f"{prompt.visual} visual and {prompt.text} text tokens, {prompt.new} new tokens"
    head = pairs(
        [
            ("model", f"{estimate.model}, weights {estimate.weights.name} ({gigabytes(estimate.weights_bytes)})"),
            ("device", f"{device.title}, {device.mode}"),
            ("request", asked),
            ("pruning", f"at the input of layer {prompt.layer}: {prompt.kept} of {prompt.visual} stay"),
            ("settings", estimate.settings),
        ]
    )
    verdict = "\n".join(f"  {line}" for line in verdicts(estimate))
    assumed = "\n".join(f"  {line}" for line in assumptions(estimate))
    return f"{head}\n\n{_table(estimate)}\n\nverdict\n{verdict}\n\nassumed\n{assumed}"


def _table(estimate: Estimate) -> str:
    before, after = estimate.unpruned, estimate.pruned
    steps = estimate.prompt.new
    rows: list[tuple[str, ...]] = [("", "all tokens", "pruned", "ratio")]
    for name, phase in (("vision", "vision"), ("prefill", "prefill"), ("first token", "first_token")):
        rows.append((name, *_spans(before, after, phase), f"{estimate.speedup(phase):.2f}"))
    speeds = (_numbers(side.tokens_per_second, "tokens/s") for side in (before, after))
    rows.append(("decode", *speeds, f"{estimate.speedup('step'):.2f}"))
    rows.append((f"{steps} tokens", *_spans(before, after, "total"), f"{estimate.speedup('total'):.2f}"))
    rows.append(("cache", gigabytes(before.cache_bytes), gigabytes(after.cache_bytes)))
    rows.append(("memory", gigabytes(before.memory_bytes), gigabytes(after.memory_bytes)))
    return table([(*row, *[""] * (4 - len(row))) for row in rows])


def _spans(before: Side, after: Side, phase: str) -> tuple[str, str]:
    first, second = (milliseconds(getattr(side, phase)) for side in (before, after))
    return first, second


def verdicts(estimate: Estimate) -> list[str]:
    """What the numbers say, in words: whether it fits, and what pruning would bring."""
    said = [_fit(estimate), _gain(estimate)]
    if estimate.pruned.step.typical < SHORT:
        said.append("so small a model waits for kernels to start, which is not counted: these times are out of reach")
    return said


def _fit(estimate: Estimate) -> str:
    device, need = estimate.device, estimate.pruned.memory_bytes
    room = f"{gigabytes(device.usable)} usable of {memory(estimate)}"
    would = f"; {estimate.smaller} weights would ({gigabytes(estimate.smaller_bytes)})" if estimate.smaller else ""
    if estimate.weights_bytes > device.usable:
        return f"does not fit into {memory(estimate)}: {gigabytes(estimate.weights_bytes)} of weights{would}"
    if not estimate.fits:
        rest = gigabytes(need - estimate.weights_bytes)
        weights = gigabytes(estimate.weights_bytes)
        return f"does not fit: {weights} of weights and {rest} of caches and activations, in {room}{would}"
    if estimate.unpruned.memory_bytes > device.usable:
        return f"fits when pruned alone: {gigabytes(need)} in {room}"
    return f"fits: {gigabytes(need)} in {room}"


def memory(estimate: Estimate) -> str:
    """The device's memory, as it is sold."""
    return f"{estimate.device.memory / GB:.0f} GB"


def _gain(estimate: Estimate) -> str:
    after, prompt = estimate.pruned, estimate.prompt
    if prompt.kept == prompt.visual:
        return "nothing is pruned: every visual token stays"
    prefill, total = estimate.speedup("prefill"), estimate.speedup("total")
    said = f"prefill {_ratio(prefill)} times as fast, end to end {_ratio(total)}"
    if prefill < LITTLE:
        return f"{said}: pruning brings little; prune at an earlier layer, or keep less"
    if after.decode_share >= MOST:
        smaller = "" if estimate.weights.name == "int4" else " or smaller weights"
        return f"{said} because decode takes {after.decode_share:.0%}: shorter answers{smaller} would help more"
    if after.vision.typical >= MOST * after.total.typical:
        share = after.vision.typical / after.total.typical
        return f"{said} because the vision tower takes {share:.0%}, which pruning does not touch"
    return f"{said}; the first token {_ratio(estimate.speedup('first_token'))}"


def _ratio(value: float) -> str:
    """One decimal, and two where it is close to 1."""
    return f"{value:.1f}" if value >= LITTLE else f"{value:.2f}"


def assumptions(estimate: Estimate) -> list[str]:
    """What the estimate takes for granted."""
    device, efficiency = estimate.device, estimate.efficiency
    known = "fitted on Jetson AGX Orin" if device.name in FITTED_ON else "little is known of prefill on this device"
    reserve = gigabytes(device.memory - device.usable)
    lines = [
        f"peaks of {device.mode}: {device.fp16:g} TFLOP/s dense FP16, {device.bandwidth:g} GB/s; "
        f"slower modes ({', '.join(device.modes)}) are slower",
        f"{_share(efficiency.compute)} of the products and {_share(efficiency.memory)} of the bandwidth are reached: "
        f"{known} (docs/estimate.md)",
        f"{reserve} are not usable: {'system, desktop, CUDA' if device.shared else 'CUDA and a screen'}",
        "one request alone, batch 1; each phase waits for its products or for its bytes, whichever takes longer",
        "not counted: preprocessing, choosing the tokens, starting kernels, sampling, norms",
    ]
    if estimate.weights.name in ("int8", "int4"):
        lines.append(
            f"{estimate.weights.name} weights of the decoder's layers, float16 products, embedding, head and tower; "
            "iwp-export itself writes no such weights yet"
        )
    return lines


def gigabytes(count: float) -> str:
    """A size in GB or MB of 10^9 and 10^6 bytes, as data sheets and weights are counted."""
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def milliseconds(span: Range) -> str:
    """A time's range."""
    return _numbers(span.times(1000), "ms")


def _numbers(span: Range, unit: str) -> str:
    low, high = (_short(value) for value in (span.low, span.high))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _short(value: float) -> str:
    """Two or three figures: the estimate holds no more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _share(share: Share) -> str:
    return f"{share.low:.0%} to {share.high:.0%}"

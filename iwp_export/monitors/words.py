"""The monitors' figures in words. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.monitors.figures import Kept, Monitors
from iwp_export.monitors.knee import RULES, about, gain, knee, read_between, sentence, share_read, warnings
from iwp_export.tables import table
from iwp_export.view.figures import percent, spread


def verdict(monitors: Monitors) -> list[str]:
    """What the figures say, in sentences; what they warn of is `knee.warnings`."""
    return [sentence(line) for line in (_reading(monitors), _budget(monitors), *_attention(monitors))]


def describe(monitors: Monitors) -> str:
    """For the terminal: warnings and the verdict, then tables."""
    return "\n\n".join(["\n".join([*warnings(monitors), *verdict(monitors)]), figures(monitors)])


def figures(monitors: Monitors) -> str:
    """The tables alone."""
    tables = [
        table([head, *rows]) for head, rows in (depth_rows(monitors), budget_rows(monitors), layer_rows(monitors))
    ]
    rules = "\n".join(f"  {rule}" for rule in RULES)
    return "\n\n".join([*tables, f"Rules:\n{rules}"])


def _reading(monitors: Monitors) -> str:
    between = read_between(monitors)
    if between is None:
        return f"the image brings {percent(gain(monitors))} of the questions, too few to see where it is read"
    begun, done = between
    last = "the last layer" if done == monitors.layers else f"layer {done - 1}"
    share = share_read(monitors, monitors.pruning_layer)
    layer = monitors.pruning_layer
    read = (
        "" if share is None else f"; {about(max(share, 0))} of what it brings before layer {layer}, which drops tokens"
    )
    if done - begun <= 1:
        return f"the image is read in layer {max(done - 1, 0)}{read}"
    return f"the image is read from layer {begun} to {last}{read}"


def _budget(monitors: Monitors) -> str:
    bend, last = knee(monitors), monitors.budget[-1]
    score, whole = monitors.score(bend.left).mean, monitors.whole.mean
    scores = f"{monitors.measure} {percent(score)}, {percent(whole)} with every token"
    if bend is last:
        return f"no budget that was measured is past the knee, down to keep {bend.keep:g} ({scores})"
    lowest = percent(monitors.score(last.left).mean)
    return f"the knee is at keep {bend.keep:g} ({scores}); at {last.keep:g} it is {lowest}"


def _attention(monitors: Monitors) -> list[str]:
    last = monitors.last_layers()
    if not last:
        return []
    before, after = (sum(values) / len(last) for values in ([each.visual.mean for each in last], _pruned(monitors)))
    which = f"last {len(last)} layers" if len(last) > 1 else "last layer"
    return [
        f"in the {which} {about(before)} of the text's attention is on visual tokens, with pruning "
        f"{about(after)}, on {about(last[-1].retention)} of them"
    ]


def _pruned(monitors: Monitors) -> list[float]:
    return [each.visual_pruned.mean for each in monitors.last_layers()]


Rows = tuple[list[str], list[list[str]]]
"""A table's head and its rows."""


def depth_rows(monitors: Monitors) -> Rows:
    """The read-depth curve."""
    kinds = list(monitors.depth[-1].left.kinds)
    rows = []
    for point in monitors.depth:
        name = "every token" if point.layer == monitors.layers else f"{point.layer}"
        rows.append([name, *_left(point.left, kinds)])
    return ["no visual token from layer", *_titles(monitors, kinds)], rows


def budget_rows(monitors: Monitors) -> Rows:
    """Scores by budget."""
    kinds = list(monitors.depth[-1].left.kinds)
    rows = [[f"{point.keep:g}", *_left(point.left, kinds)] for point in monitors.budget]
    return [f"keep at layer {monitors.pruning_layer}", *_titles(monitors, kinds)], rows


def layer_rows(monitors: Monitors) -> Rows:
    """Attention by layer, every token and pruned."""
    head = ["layer", "visual tokens seen", "entropy, nats", "pruned", "attention to visual", "pruned"]
    rows = []
    for each in monitors.attention:
        entropies = (f"{value.mean:.2f}" for value in (each.entropy, each.entropy_pruned))
        shares = (f"{about(value.mean)}" for value in (each.visual, each.visual_pruned))
        rows.append([str(each.layer), f"{about(each.retention)}", *entropies, *shares])
    return head, rows


def _titles(monitors: Monitors, kinds: Sequence[str]) -> list[str]:
    accuracy = ["accuracy"] if monitors.measure == "accuracy" else []
    return [*accuracy, *kinds, "agreement", "KL, nats"]


def _left(left: Kept, kinds: Sequence[str]) -> list[str]:
    accuracy = [] if left.accuracy is None else [spread(left.accuracy)]
    by_kind = [percent(left.kinds[kind]) for kind in kinds]
    return [*accuracy, *by_kind, spread(left.agreement), f"{left.kl.mean:.3g}"]

"""Where the curves bend, by rules of one sentence each, and what that warns of. Needs no torch."""

from __future__ import annotations

from iwp_export.monitors.figures import BudgetPoint, Monitors
from iwp_export.view.figures import percent

READ = 0.95
"""An image has been read where this share of what it brings is there without its tokens."""
BEGUN = 0.05
LEAST_GAIN = 0.05
"""What an image must bring, as a share of all questions, for the curve to say anything."""
CLIFF = 0.95
"""Pruning has a cost from the first budget whose score is below this share of the unpruned one."""


def about(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f} %"


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


RULES = (
    f"read: the first layer from which on the model needs no visual token to have {about(READ)} of what the image "
    "brings (its score with every token less its score without the image)",
    f"begun: the last layer before which it has {about(BEGUN)} of that at most",
    f"knee: the smallest budget at which, and above which, the score is {about(CLIFF)} of the unpruned one at least",
)


def gain(monitors: Monitors) -> float:
    """What the image brings: the score with every token, less the one without the image."""
    return monitors.whole.mean - monitors.blind.mean


def share_read(monitors: Monitors, layer: int) -> float | None:
    """Share of what the image brings that is there if no visual token goes on from `layer` on.

    None where the image brings less than `LEAST_GAIN`, or the layer was not measured.
    """
    if gain(monitors) < LEAST_GAIN:
        return None
    found = [monitors.score(point.left).mean for point in monitors.depth if point.layer == layer]
    return (found[0] - monitors.blind.mean) / gain(monitors) if found else None


def read_between(monitors: Monitors) -> tuple[int, int] | None:
    """Layers between which the image is read: `begun` and `read` of `RULES`; None where it brings too little."""
    if gain(monitors) < LEAST_GAIN:
        return None
    shares = [(point.layer, share_read(monitors, point.layer) or 0.0) for point in monitors.depth]
    done = next(layer for layer, share in shares if share >= READ)
    begun = max((layer for layer, share in shares if share <= BEGUN), default=shares[0][0])
    return min(begun, done), done


def knee(monitors: Monitors) -> BudgetPoint:
    """The budget by the rule of `RULES`; keep 1 at worst."""
    found = monitors.budget[0]
    for point in monitors.budget:
        if monitors.score(point.left).mean < CLIFF * monitors.whole.mean:
            break
        found = point
    return found


def warnings(monitors: Monitors) -> list[str]:
    """What makes a result at these settings prove little, or the settings costly; a sentence each."""
    return [sentence(line) for line in (_too_late(monitors), _past_the_knee(monitors)) if line]


def _too_late(monitors: Monitors) -> str:
    whole, blind = percent(monitors.whole.mean), percent(monitors.blind.mean)
    scores = f"{whole} {monitors.measure} with every token, {blind} without the image"
    if gain(monitors) < LEAST_GAIN:
        return f"these questions do not need the image ({scores}): no figure of them says anything about pruning"
    layer, share = monitors.pruning_layer, share_read(monitors, monitors.pruning_layer)
    if share is None or share < READ:
        return ""
    return (
        f"the model has read the image before layer {layer}: with no visual token from there on it keeps "
        f"{about(share)} of what the image brings ({scores}), so that a good score there proves nothing about which "
        "tokens are kept"
    )


def _past_the_knee(monitors: Monitors) -> str:
    bend = knee(monitors)
    here = min(monitors.budget, key=lambda point: abs(point.keep - monitors.keep))
    if monitors.keep >= bend.keep or here is bend:
        return ""
    score, better = (percent(monitors.score(point.left).mean) for point in (here, bend))
    return (
        f"keep {monitors.keep:g} is past the knee: {monitors.measure} is {score} at keep {here.keep:g} and {better} at "
        f"{bend.keep:g}, the smallest measured that holds {about(CLIFF)} of {percent(monitors.whole.mean)}"
    )

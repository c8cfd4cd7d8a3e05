"""Shapes that an engine is built for: the ranges of a prefill profile, a decode profile and the vision tower's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iwp_export.bundle.manifest import Bounds, DecoderInfo, GraphSpec, Manifest, VisionInfo
from iwp_export.bundle.schema import Count
from iwp_export.errors import SettingsError

DEFAULT_CONTEXT = 4096
PROMPT_TEXT = 512
"""Text tokens of one call, beside its images, that an engine takes by default."""
TYPICAL_TEXT = 48
"""Text tokens of a typical prompt: kernels are chosen for this length."""
TYPICAL_ANSWER = 64

PREFILL, DECODE = 0, 1
"""The decoder's optimisation profiles."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine can hold.

    Attributes:
        max_context: tokens of a conversation, before pruning.
        max_prompt: tokens of one call, text and visual together.
        max_images: images of one call.
    """

    max_context: Count
    max_prompt: Count
    max_images: Count

    def __str__(self) -> str:
        return f"{self.max_context} tokens, {self.max_prompt} a call with up to {self.max_images} image(s)"


Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Least, typical and greatest shape of an input."""


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: shapes of the inputs, and values of those that are lengths themselves."""

    shapes: Mapping[str, Shapes]
    values: Mapping[str, Bounds]


def choose_limits(
    decoder: DecoderInfo,
    vision: VisionInfo,
    max_context: int | None = None,
    max_prompt: int | None = None,
    max_images: int = 1,
) -> EngineLimits:
    """Limits of an engine for a model; None is the default.

    Raises:
        SettingsError: they contradict each other or the model.
    """
    positions, per_image = decoder.max_positions, vision.tokens.greatest
    visual = max_images * per_image
    context = min(positions, DEFAULT_CONTEXT) if max_context is None else max_context
    prompt = min(context, visual + PROMPT_TEXT) if max_prompt is None else max_prompt
    for name, value, least, greatest in (
        ("max_images", max_images, 1, None),
        ("max_context", context, 2, positions),
        ("max_prompt", prompt, 1, context),
    ):
        if value < least or (greatest is not None and value > greatest):
            upper = "or more" if greatest is None else f"to {greatest}"
            raise SettingsError(f"{name} must be {least} {upper}, got {value}", options=(name,))
    if visual >= prompt:
        raise SettingsError(
            f"{max_images} image(s) make {visual} visual tokens, which leave no room for text in a prompt of {prompt}: "
            "raise max_context or lower max_images",
            options=("max_context", "max_images"),
        )
    return EngineLimits(context, prompt, max_images)


def decoder_profiles(manifest: Manifest, limits: EngineLimits, keep: float | None = None) -> tuple[Profile, Profile]:
    """The prefill and the decode profile.

    A prompt of one token without a past is prefill; decode has a past, one token and no image. The past of a layer
    beyond the pruning layer is as long as the others at most, since a request may keep everything.

    Args:
        manifest: the bundle's.
        limits: what the engine can hold.
        keep: the typical keep ratio; None is the exported one.
    """
    visual, greatest = manifest.vision.tokens.typical, limits.max_images * manifest.vision.tokens.greatest
    kept = manifest.pruning.num_keep(visual, keep)
    prompt = min(limits.max_prompt, visual + TYPICAL_TEXT)
    past = limits.max_context - 1
    one = Bounds.fixed(1)

    def decode_past(tokens: int) -> Bounds:
        return Bounds(1, min(past, tokens + TYPICAL_TEXT + TYPICAL_ANSWER), past)

    graph = manifest.graphs["decoder"]
    prefill = {
        "tokens": Bounds(1, prompt, limits.max_prompt),
        "features": Bounds(1, visual, greatest),
        "queries": Bounds(1, min(prompt, TYPICAL_TEXT), limits.max_prompt),
        "past_full": Bounds(0, 0, past),
        "past_pruned": Bounds(0, 0, past),
        "num_kept": Bounds(1, min(prompt, kept + TYPICAL_TEXT), limits.max_prompt),
    }
    decode = {
        "tokens": one,
        "features": one,
        "queries": one,
        "past_full": decode_past(visual),
        "past_pruned": decode_past(kept),
        "num_kept": one,
    }
    return _profile(graph, prefill), _profile(graph, decode)


def profiles_for(
    manifest: Manifest, role: str, limits: EngineLimits, keep: float | None, count: int
) -> tuple[Profile, ...]:
    """The profiles of one of the bundle's graphs.

    The decoder has prefill and decode, or with `count` 1 the prefill one, whose ranges hold decode steps: TensorRT-RTX
    stores the weights of every linear layer once a profile, so two profiles nearly double an engine.
    """
    return (vision_profile(manifest),) if role == "vision" else decoder_profiles(manifest, limits, keep)[:count]


def vision_profile(manifest: Manifest) -> Profile:
    """The vision tower's profile: one image a call, as the runtime runs it."""
    return _profile(manifest.graphs["vision"], manifest.vision.dims)


def _profile(graph: GraphSpec, ranges: Mapping[str, Bounds]) -> Profile:
    shapes: dict[str, Shapes] = {}
    values: dict[str, Bounds] = {}
    for tensor in graph.inputs:
        if tensor.name in ranges:
            values[tensor.name] = ranges[tensor.name]
            continue
        dims = []
        for dim in tensor.shape:
            if isinstance(dim, str) and dim not in ranges:
                raise SettingsError(f"input {tensor.name} has dimension {dim!r}, which this version does not know")
            dims.append(ranges[dim] if isinstance(dim, str) else Bounds.fixed(dim))
        least, typical, greatest = zip(*((dim.least, dim.typical, dim.greatest) for dim in dims), strict=True)
        shapes[tensor.name] = (least, typical, greatest)
    return Profile(shapes, values)

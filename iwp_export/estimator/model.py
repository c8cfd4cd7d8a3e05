"""An estimate of a checkpoint, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iwp_export.device.specs import find_device
from iwp_export.errors import SettingsError
from iwp_export.estimator.prediction import Estimate, predict
from iwp_export.estimator.roofline import WEIGHTS, Prompt
from iwp_export.estimator.shape import LanguageShape, ModelShape, TowerShape
from iwp_export.exporter.checkpoint import Checkpoint, open_checkpoint
from iwp_export.exporter.settings_source import check_request, resolve
from iwp_export.pruning.settings import PruningSettings


def estimate_model(
    model: str,
    device: str,
    pruning: PruningSettings | Mapping[str, Any] | None = None,
    *,
    recipe: Path | str | None = None,
    weights: str = "fp16",
    text_tokens: int = 64,
    images: int = 1,
    new_tokens: int = 64,
    revision: str | None = None,
) -> Estimate:
    """Estimate speed and memory; arguments and errors are those of `iwp_export.api.estimate`."""
    spec = find_device(device)
    if weights not in WEIGHTS:
        raise SettingsError(f"no weights {weights!r}; there are: {', '.join(WEIGHTS)}", options=("weights",))
    for name, value in (("text_tokens", text_tokens), ("images", images), ("new_tokens", new_tokens)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SettingsError(f"{name} must be a whole number of 1 or more, got {value!r}", options=(name,))
    check_request(pruning, recipe)  # before anything is fetched
    checkpoint = _configuration(open_checkpoint(model, revision=revision, weights=False))
    # keep and layer are all that an estimate takes of a recipe, so another model's is worth a look
    choice = resolve(checkpoint, pruning, recipe, any_model=True)
    settings, config = choice.settings, checkpoint.config
    checkpoint.family.require_layer(config, settings.layer, checkpoint.name)
    vision = checkpoint.family.vision_info(config)
    visual = vision.tokens.typical * images
    most = config.text_config.max_position_embeddings
    if visual + text_tokens + new_tokens > most:
        raise SettingsError(
            f"{visual} visual, {text_tokens} text and {new_tokens} new tokens are more than the {most} of "
            f"{checkpoint.name}; ask for less",
            options=("images", "text_tokens", "new_tokens"),
        )
    tiles = images * (vision.dims["tiles"].typical if "tiles" in vision.dims else 1)
    prompt = Prompt(visual, text_tokens, new_tokens, settings.layer, settings.num_keep(visual), tiles)
    shape = ModelShape(LanguageShape.of(config), TowerShape.of(config))
    return predict(shape, prompt, spec, WEIGHTS[weights], model=checkpoint.name, settings=str(choice.source))


def _configuration(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as one whose weights are elsewhere, if its folder has none: a recipe is then found by name."""
    if not checkpoint.is_local or any(checkpoint.folder.glob("*.safetensors")):
        return checkpoint
    return replace(checkpoint, is_local=False)

"""What an export would make: settings and shapes checked, sizes counted, nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from iwp_export.bundle.manifest import DecoderInfo, GenerationInfo, ModelInfo, VisionInfo
from iwp_export.bundle.schema import from_json, to_json
from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import Checkpoint, open_checkpoint
from iwp_export.exporter.config_schema import is_written, shortened
from iwp_export.exporter.proof import prove_processor
from iwp_export.exporter.settings_source import Choice, check_request, resolve
from iwp_export.pruning.settings import PruningSettings
from iwp_export.settings import Dtype

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length of the prompt."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export would make, from the configuration and the weights' headers alone."""

    checkpoint: Checkpoint
    model: ModelInfo
    pruning: Choice
    decoder: DecoderInfo
    vision: VisionInfo
    generation: GenerationInfo
    dtype_reason: str
    """Why the decoder has its element type."""
    notes: tuple[str, ...] = ()
    """What the export would leave out, or the bundle not do."""

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the bundle's weights, within a percent: from a model on fake tensors, which takes a second.

        Raises:
            CheckpointError: transformers makes no model of the configuration.
        """
        return self.checkpoint.size() * ITEM_BYTES[self.decoder.dtype]

    @property
    def settings(self) -> PruningSettings:
        """Where and how to prune."""
        return self.pruning.settings

    @property
    def num_visual(self) -> int:
        """Visual tokens of a typical image."""
        return self.vision.tokens.typical

    @property
    def num_visual_kept(self) -> int:
        """Those of them that stay."""
        return self.settings.num_keep(self.num_visual)

    def cache_bytes(self, text_tokens: int, pruned: bool = True) -> int:
        """Bytes of the key/value cache after a prompt of one image and `text_tokens` text tokens."""
        full, kept = self.num_visual + text_tokens, self.num_visual_kept + text_tokens
        below = self.settings.layer if pruned else self.decoder.layers
        return self.decoder.cache_bytes([full] * below + [kept] * (self.decoder.layers - below))


def plan_export(
    model: str,
    pruning: PruningSettings | Mapping[str, Any] | None = None,
    *,
    recipe: Path | str | None = None,
    any_model: bool = False,
    dtype: Dtype = "auto",
    revision: str | None = None,
) -> ExportPlan:
    """Check and count what an export would make; nothing is written, and no weights of a Hub id are fetched.

    Args:
        model: an alias, a Hub id or a folder.
        pruning, recipe, any_model: where and how to prune, see `iwp_export.exporter.settings_source.resolve`.
        dtype: element type of weights and activations; `auto` is float16 for a 16-bit checkpoint, else float32.
        revision: branch, tag or commit of a Hub id.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or supported.
        RecipeError: the recipe cannot be read, or is of another model.
        SettingsError: a setting is out of range, or the model cannot be pruned at that layer.
    """
    check_request(pruning, recipe)  # before anything is fetched
    checkpoint = open_checkpoint(model, revision=revision, weights=False)
    choice = resolve(checkpoint, pruning, recipe, any_model)
    config, text = checkpoint.config, checkpoint.config.text_config
    _check_decoder(checkpoint)
    of_recipe = "" if choice.source.recipe is None or "layer" in choice.source.overridden else "the recipe's "
    checkpoint.family.require_layer(config, choice.settings.layer, checkpoint.name, of_recipe)
    special, generation = read_generation(checkpoint, text.vocab_size)
    name, reason = _choose_dtype(checkpoint, dtype)
    heads = text.num_attention_heads
    decoder = DecoderInfo(
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        heads=heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        dtype=name,
        **special,
    )
    architecture = (config.architectures or ["unknown"])[0]
    info = ModelInfo(checkpoint.name, checkpoint.source, checkpoint.model_type, architecture, checkpoint.revision)
    vision = checkpoint.family.vision_info(config)
    from iwp_export.exporter.loading import check_weights

    left_out = check_weights(config, checkpoint.folder, checkpoint.weights()) if checkpoint.is_local else ""
    _, no_template = prove_processor(checkpoint.folder, decoder, vision, checkpoint.family)
    notes = tuple(filter(None, (left_out, no_template, generation.note)))
    return ExportPlan(checkpoint, info, choice, decoder, vision, generation, reason, notes)


def _choose_dtype(checkpoint: Checkpoint, wanted: Dtype) -> tuple[str, str]:
    """The element type of an export, and why it is that."""
    if wanted != "auto":
        return wanted, "as asked"
    own = checkpoint.dtype()
    reason = f"the checkpoint is {own}" if own else "config.json names no dtype, and the weights are not here"
    return "float16" if ITEM_BYTES.get(own) == 2 else "float32", f"auto: {reason}"


def _check_decoder(checkpoint: Checkpoint) -> None:
    text, known = checkpoint.config.text_config, checkpoint.family.decoders
    if text.model_type not in known:
        raise CheckpointError(f"language model {text.model_type!r} is not supported; supported: {', '.join(known)}")
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise CheckpointError(f"rope_type {rope!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise CheckpointError(f"layers of {other[0]} are not supported ({text.model_type})")
    window = getattr(text, "sliding_window", None)
    if window is None or window >= text.max_position_embeddings:  # every token sees all before it
        return
    if "sliding_attention" in kinds or text.model_type == "mistral":
        unwritten = ", transformers' default; where the model has none, set text_config.sliding_window to null"
        whose = "" if is_written("text_config.sliding_window", checkpoint.written()) else unwritten
        raise CheckpointError(
            f"sliding-window attention is not supported ({text.model_type} with a window of {window}{whose})"
        )


GENERATION_FILE = "generation_config.json"
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "typical_p": (1,),
}
"""Values that change no token; so does None, False, and an empty list for every name."""
HARMLESS = frozenset(
    """assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bos_token_id
    cache_config cache_implementation compile_config continuous_batching_config decoder_start_token_id disable_compile
    early_stopping eos_token_id forced_bos_token_id is_assistant length_penalty low_memory max_cache_len
    max_length max_matching_ngram_size max_new_tokens num_assistant_tokens num_assistant_tokens_schedule
    num_return_sequences output_attentions output_hidden_states output_logits output_scores pad_token_id
    prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits return_dict_in_generate
    speculation_type target_lookbehind transformers_version use_cache use_mtp""".split()  # noqa: SIM905
)
"""Settings of how a token is computed and not which, of beam search alone (which `num_beams` asks for), of models with
an encoder, of outputs; and the length, which each request says."""


def read_generation(checkpoint: Checkpoint, vocab_size: int) -> tuple[dict[str, Any], GenerationInfo]:
    """As transformers' `generate` takes them: from generation_config.json, else from the configuration.

    Returns:
        Fields of `DecoderInfo`: ids of the tokens that begin, end and fill up texts; and the rest.

    Raises:
        CheckpointError: a setting is not of its kind, or a token that ends answers is not in the vocabulary.
    """
    from transformers import GenerationConfig

    has_file = (checkpoint.folder / GENERATION_FILE).is_file()
    where = checkpoint.folder / (GENERATION_FILE if has_file else "config.json")
    try:
        if has_file:
            config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        else:
            config = GenerationConfig.from_model_config(checkpoint.config)
        names = vars(GenerationConfig()).keys()  # what else the file holds, transformers does not read
        known = {name: value for name, value in vars(config).items() if name in names}
        return _special_tokens(known, vocab_size), _generation_info(known)
    except Exception as error:  # transformers checks some of it, in its own ways
        raise CheckpointError(f"{where} is not valid: {(str(error).strip() or repr(error)).splitlines()[0]}") from error


def _special_tokens(config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    eos = config.get("eos_token_id")
    ids = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"eos_token_id must be token ids from 0 to {vocab_size - 1}, got {eos!r}")
    others = {name: config.get(name) for name in ("bos_token_id", "pad_token_id")}
    for name, token in others.items():
        if token is not None and type(token) is not int:
            raise ValueError(f"{name} must be a token id, got {token!r}")
    return {"eos_token_ids": ids, **others}


def _generation_info(config: Mapping[str, Any]) -> GenerationInfo:
    obeyed = {field.name for field in fields(GenerationInfo)} - {"ignored"}
    given = {name: value for name, value in config.items() if value is not None}
    values: dict[str, Any] = {name: value for name, value in given.items() if name in obeyed}
    if values.get("top_k") == 0:  # transformers' word for all
        del values["top_k"]
    if "min_new_tokens" in values:  # then transformers takes no notice of the other
        values.pop("min_length", None)
    ignored = [
        f"{name} = {shortened(' '.join(str(value).split()), 37)}"
        for name, value in sorted(given.items())
        if not name.startswith("_")
        and name not in obeyed | HARMLESS
        and value is not False
        and value not in ([], {}, *NEUTRAL.get(name, ()))
    ]
    info: GenerationInfo = from_json(GenerationInfo, {**to_json(GenerationInfo()), **values, "ignored": ignored}, "")
    return info

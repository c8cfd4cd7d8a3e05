"""What a checkpoint's generation_config asks for: tokens that end an answer, and how tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from iwp_export.bundle.manifest import GenerationInfo
from iwp_export.bundle.schema import from_json, to_json
from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import Checkpoint

FILE = "generation_config.json"
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


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that begin, end and fill up texts."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def read_generation(checkpoint: Checkpoint, vocab_size: int) -> tuple[SpecialTokens, GenerationInfo]:
    """As transformers' `generate` takes them: from generation_config.json, else from the configuration.

    Args:
        checkpoint: the checkpoint.
        vocab_size: logits of the model.

    Raises:
        CheckpointError: a setting is not of its kind, or a token that ends answers is not in the vocabulary.
    """
    from transformers import GenerationConfig

    has_file = (checkpoint.folder / FILE).is_file()
    where = checkpoint.folder / (FILE if has_file else "config.json")
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


def _special_tokens(config: Mapping[str, Any], vocab_size: int) -> SpecialTokens:
    eos = config.get("eos_token_id")
    ids = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    for token in ids:
        if not _is_int(token) or not 0 <= token < vocab_size:
            raise ValueError(f"eos_token_id must be token ids from 0 to {vocab_size - 1}, got {eos!r}")
    for name in ("bos_token_id", "pad_token_id"):
        if config.get(name) is not None and not _is_int(config[name]):
            raise ValueError(f"{name} must be a token id, got {config[name]!r}")
    return SpecialTokens(config.get("bos_token_id"), ids, config.get("pad_token_id"))


def _generation_info(config: Mapping[str, Any]) -> GenerationInfo:
    obeyed = {field.name for field in fields(GenerationInfo)} - {"ignored"}
    given = {name: value for name, value in config.items() if value is not None}
    values: dict[str, Any] = {name: value for name, value in given.items() if name in obeyed}
    if values.get("top_k") == 0:  # transformers' word for all
        del values["top_k"]
    if "min_new_tokens" in values:  # then transformers takes no notice of the other
        values.pop("min_length", None)
    ignored = [
        f"{name} = {_shown(value)}"
        for name, value in sorted(given.items())
        if not name.startswith("_")
        and name not in obeyed | HARMLESS
        and value is not False
        and value not in ([], {}, *NEUTRAL.get(name, ()))
    ]
    info: GenerationInfo = from_json(GenerationInfo, {**to_json(GenerationInfo()), **values, "ignored": ignored}, "")
    return info


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Folders and tensors that are not what an export takes, recognised so that an error can say what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwp_export.errors import CheckpointError

POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull there",
    b"# xet version": "a Git Xet pointer, not the file itself: run git xet checkout there",
    b"<!doctype html": "a web page, not the file itself",
    b"<html": "a web page, not the file itself",
}
"""What stands in a file's place after an incomplete download, by its first bytes in lower case."""

ADAPTER_CONFIG = "adapter_config.json"
ORIGINAL_LAVA = re.compile(r"Llava(Llama|Mistral|Mixtral|Mpt|Qwen|Gemma|Phi)\w*ForCausalLM")
CONVERTED = "use a checkpoint that was converted to transformers' layout (on the Hub such names end in -hf)"

UNSUPPORTED_KEYS = {
    "auto_map": "needs code from its own repository (trust_remote_code), which is never run",
    "quantization_config": "is quantised (its config.json has a quantization_config); export what it was made from",
    "compression_config": "is quantised (its config.json has a compression_config); export what it was made from",
    "quantization": "is quantised (its config.json has a quantization, as MLX writes); export what it was made from",
    "per_layer_config": "has layers of different kinds (its config.json has a per_layer_config); not supported",
}
"""Keys of config.json, also of its parts, that change what the weights mean."""

QUANTISERS = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
    "qmodel.pt": "HQQ",
}
"""Files beside a quantised model's config.json, and who writes them."""

OTHER_LAYOUTS = {
    "params.json": "the layout of Meta or Mistral",
    "model_index.json": "a pipeline of diffusers",
    "genai_config.json": "a model of onnxruntime-genai",
    "*.gguf": "a GGUF file of llama.cpp",
    "*.onnx": "an ONNX model",
}
"""What folders without a config.json hold."""


def refuse_folder(folder: Path, model: str) -> None:
    """Refuse a folder that is no checkpoint of transformers, or an incomplete one.

    Raises:
        CheckpointError: it holds pointers in place of files, an adapter alone, another layout or quantised weights.
    """
    for pattern in ("*.json", "*.model", "*.txt", "*.jinja", "*.safetensors"):
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and (kind := _stands_in(file)):
                raise CheckpointError(f"{file} is {kind}, or download it again")
    weights = [file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    bare = not (folder / "config.json").is_file()
    if (folder / ADAPTER_CONFIG).is_file() and (
        bare or (weights and all(file.name.startswith("adapter_") for file in weights))
    ):
        raise CheckpointError(f"{model} is {_adapter(folder)}: {MERGE}, and export the result")
    if bare:
        other = next((words for name, words in OTHER_LAYOUTS.items() if any(folder.glob(name))), "")
        other = other and f" but {other}"
        raise CheckpointError(f"{model}: {folder} has no config.json{other}; it is not a Hugging Face checkpoint")
    for name, tool in QUANTISERS.items():
        if (folder / name).is_file():
            raise CheckpointError(
                f"{model} is quantised (it has {name}, as {tool} writes); export what it was made from"
            )


MERGE = "merge it into the model first (PEFT's merge_and_unload, then save_pretrained)"


def _stands_in(file: Path) -> str:
    """What a file is in place of what its name says; empty if nothing of `POINTERS`."""
    with file.open("rb") as opened:
        start = opened.read(64).lstrip().lower()
    return next((kind for mark, kind in POINTERS.items() if start.startswith(mark)), "")


def _adapter(folder: Path) -> str:
    """An adapter in words, from its configuration."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        kind, base = config.get("peft_type", ""), config.get("base_model_name_or_path")
    except (ValueError, AttributeError):
        kind, base = "", None
    kind = {"LORA": "a LoRA adapter"}.get(kind, "an adapter")
    return f"{kind} of {base}" if isinstance(base, str) and base.isprintable() else kind


def refuse_config(raw: Mapping[str, Any], model: str) -> None:
    """Refuse a config.json, as JSON, of another layout or with keys that change what the weights mean.

    Raises:
        CheckpointError: such a one.
    """
    architectures = raw.get("architectures")
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    signs = [key for key in ("mm_vision_tower", "mm_projector_type", "mm_hidden_size") if key in raw]
    signs += [name for name in named if ORIGINAL_LAVA.fullmatch(name)]
    if signs:
        raise CheckpointError(f"{model} has the layout of the original LLaVA ({signs[0]} in config.json): {CONVERTED}")
    for part in (raw, raw.get("text_config"), raw.get("vision_config")):
        for key, problem in UNSUPPORTED_KEYS.items():
            if isinstance(part, dict) and part.get(key) is not None:
                raise CheckpointError(f"{model} {problem}")


COMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias)$")
"""Stored constants that a model computes itself."""
WRAPPER = re.compile(r"(^|\.)(module|_orig_mod|base_model\.model|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
MEANINGS = {
    r"(^|[._])(lora|adapters?|ia3|loha|lokr|hada|oft|boft|vera|dora|prompt_encoder|prompt_embeddings)([._]|$)"
    r"|\.(base_layer|modules_to_save|original_module)\.": (
        f"part of an adapter, without which the answers are another model's: {MERGE}"
    ),
    r"\.(g_idx|q\w+|scales|(?!logit_)\w+_scales?(_inv)?|biases|zeros|\w*zero_point|SCB|absmax|\w*amax)$"
    r"|\.weight_(packed|shape|format)$"
    r"|quant_(map|state)": (
        "of a quantised model, though config.json has no quantization_config: export the checkpoint it was made from"
    ),
    r"\.(weight_orig|weight_mask|weight_g|weight_v|weight_[uv]|parametrizations\..*)$": (
        "one of the tensors from which a weight is computed: remove the parametrisation "
        "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove) and save_pretrained"
    ),
}
"""What a tensor without a place in the model means, by its name; each changes the answers."""
NAMED = 3


def name_leftovers(names: Sequence[str], every: Sequence[str], source: str) -> str:
    """Judge the tensors that have no place in a model.

    Args:
        names: theirs.
        every: the names of all stored tensors.
        source: where they are stored.

    Returns:
        A line that names those that are left out; empty if there are none.

    Raises:
        CheckpointError: without them the answers would be another model's.
    """
    left = [name for name in names if not COMPUTED.search(name)]
    for pattern, meaning in MEANINGS.items():
        if found := [name for name in left if re.search(pattern, name)]:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise CheckpointError(f"{source} holds {found[0]}{more}, {meaning}")
    wrapped = next((match for name in left if (match := WRAPPER.search(name))), None)
    firsts = {name.partition(".")[0] for name in every}
    if wrapped or (len(left) == len(every) and len(firsts) == 1):
        prefix = wrapped.group().lstrip(".") if wrapped else f"{firsts.pop()}."
        raise CheckpointError(
            f"the names of tensors in {source} have {prefix!r} before them ({left[0]}), as a wrapped model saves them: "
            "rename them without it, or unwrap the model and save_pretrained"
        )
    if not left:
        return ""
    shown = ", ".join(left[:NAMED]) + (f" and {len(left) - NAMED} more" if len(left) > NAMED else "")
    return f"{source} holds tensors that have no place in the model and are left out: {shown}"

"""Folders and tensors that are not what an export takes, recognised so that an error can say what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwp_export.errors import CheckpointError

STAND_INS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull there, or download it again",
    b"<!doctype html": "a web page, not the file itself: download it again",
}
"""What lies in a file's place after an incomplete download, by its first bytes in lower case."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")
MERGE = "merge it into the model first (PEFT's merge_and_unload, then save_pretrained)"
RANK_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""What transformers' distributed checkpoints are made of; where there is one, it loads them and nothing else."""

UNSUPPORTED_KEYS = {
    "auto_map": "needs code from its own repository (trust_remote_code), which is never run",
    "quantization_config": "is quantised (its config.json has a quantization_config); export what it was made from",
    "compression_config": "is quantised (its config.json has a compression_config); export what it was made from",
    "quantization": "is quantised (its config.json has a quantization, as MLX writes); export what it was made from",
    "per_layer_config": "has layers of different kinds (its config.json has a per_layer_config); not supported",
}
"""Keys of config.json, also of its parts, that change what the weights mean."""

LOOKED_AT = (".json", ".model", ".txt", ".jinja", ".safetensors")
QUANTISERS = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}
"""Files beside a quantised model's config.json, and who writes them."""


def refuse_folder(folder: Path, model: str) -> None:
    """Refuse a folder that is no checkpoint of transformers, or not a whole one with all of a model's weights.

    Raises:
        CheckpointError: such a folder.
    """
    for file in sorted(file for file in folder.iterdir() if file.suffix in LOOKED_AT and file.is_file()):
        with file.open("rb") as opened:
            start = opened.read(64).lstrip().lower()
        for mark, kind in STAND_INS.items():
            if start.startswith(mark):
                raise CheckpointError(f"{file} is {kind}")
    has_config = (folder / "config.json").is_file()
    if adapters := [name for name in ADAPTERS if (folder / name).is_file()]:
        weights = {file.name for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}")}
        if not has_config or (weights and weights <= set(adapters)):
            raise CheckpointError(f"{model} is {_adapter(folder)}: {MERGE}, and export the result")
        raise CheckpointError(
            f"{folder} holds an adapter ({', '.join(adapters)}), which an export does not apply: {MERGE}, or remove it"
        )
    if not has_config:
        other = " but a GGUF file of llama.cpp" if any(folder.glob("*.gguf")) else ""
        raise CheckpointError(f"{model}: {folder} has no config.json{other}; it is not a Hugging Face checkpoint")
    for name, tool in QUANTISERS.items():
        if (folder / name).is_file():
            raise CheckpointError(
                f"{model} is quantised (it has {name}, as {tool} writes); export what it was made from"
            )
    ranks = sorted(file.name for file in folder.glob("shard-*.safetensors") if RANK_FILE.fullmatch(file.name))
    if ranks:
        raise CheckpointError(
            f"{folder} holds a distributed checkpoint ({ranks[0]}, ...), which transformers loads in place of other "
            "weights; gather it with save_pretrained, or remove it"
        )


def _adapter(folder: Path) -> str:
    """An adapter in words, from its configuration."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        kind = "a LoRA adapter" if config.get("peft_type") == "LORA" else "an adapter"
        base = str(config["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, AttributeError):
        return "an adapter"
    return f"{kind} of {base}" if base.isprintable() else kind


ORIGINAL_LLAVA = re.compile(r"Llava(Llama|Mistral|Mixtral|Mpt|Qwen|Gemma|Phi)\w*ForCausalLM")
CONVERTED = "use a checkpoint that was converted to transformers' layout (on the Hub such names end in -hf)"


def refuse_config(raw: Mapping[str, Any], model: str) -> None:
    """Refuse a config.json, as JSON, of another layout or with keys that change what the weights mean.

    Raises:
        CheckpointError: such a one.
    """
    architectures = raw.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    signs = [key for key in ("mm_vision_tower", "mm_projector_type") if key in raw]
    signs += [name for name in named if ORIGINAL_LLAVA.fullmatch(str(name))]
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
    """A line about the tensors `names`, of `every` in `source`, that have no place in a model; empty if there are none.

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

"""Checkpoints: from an alias, a Hub id or a folder to a configuration and an index of safetensors weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.errors import CheckpointError
from iwp_export.graph.weights import DTYPES, StoredTensor, read_header, renamed
from iwp_export.models import ALIASES, find_family
from iwp_export.models.common.family import Family

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
"""What the runtime needs to turn prompts and images into tensors and tokens into text."""


RENAMES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    (r"^image_newline$", "model.image_newline"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; `config` is its transformers configuration, `is_local` whether its weights are on this machine."""

    name: str
    source: str
    folder: Path
    config: Any
    family: Family
    revision: str | None = None
    is_local: bool = True

    def with_weights(self) -> Checkpoint:
        """The checkpoint with the weights on this machine, fetched now if they are not.

        Raises:
            CheckpointError: they cannot be fetched.
        """
        if self.is_local:
            return self
        return replace(self, folder=_download(self.source, self.revision, weights=True), is_local=True)

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    def weights(self) -> dict[str, StoredTensor]:
        """Every stored tensor under the name that transformers' model gives it.

        Raises:
            CheckpointError: there are no safetensors weights, or a shard is missing or damaged.
        """
        tensors: dict[str, StoredTensor] = {}
        for file in weight_files(self.folder):
            tensors.update(read_header(file))
        return renamed(tensors, RENAMES)

    def size(self) -> tuple[int, bool]:
        """Number of parameters, and whether they have 16 bits; from the index while the weights are not here.

        Raises:
            CheckpointError: as `weights`.
        """
        index = self.folder / INDEX
        total = _index(index).get("metadata", {}).get("total_size") if index.is_file() else None
        if total is not None and not any(self.folder.glob("*.safetensors")):
            half = str(getattr(self.config, "dtype", None)).removeprefix("torch.") in ("float16", "bfloat16")
            return int(total) // (2 if half else 4), half
        tensors = self.weights()
        embedding = tensors.get("model.language_model.embed_tokens.weight")
        count = sum(tensor.nbytes // np.dtype(DTYPES[tensor.dtype]).itemsize for tensor in tensors.values())
        return count, embedding is not None and embedding.dtype in ("F16", "BF16")

    def load_model(self, dtype: str = "float32") -> Any:
        """The checkpoint's stock transformers model, ready for inference.

        Args:
            dtype: element type of weights and activations, by torch's name.
        """
        import torch
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
        ).eval()

    def processor_files(self) -> list[Path]:
        return [path for name in PROCESSOR_FILES if (path := self.folder / name).is_file()]


def open_checkpoint(model: str, *, revision: str | None = None, weights: bool = True) -> Checkpoint:
    """Find a checkpoint and read its configuration.

    Args:
        model: an alias (`tiny-llava`), a Hub id (`llava-hf/llava-1.5-7b-hf`) or a folder.
        revision: branch, tag or commit of a Hub id.
        weights: also bring the weights of a Hub id to this machine; without, its small files alone.

    Raises:
        CheckpointError: no such checkpoint, no network, an unsupported family, or code that would have to be trusted.
    """
    target = ALIASES.get(model, model)
    folder = Path(target).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision} is for a Hub id, but {model} is a folder; leave it out", options=("revision",)
            )
        source = model
    elif "/" in target and not target.startswith((".", "/", "~")) and target.count("/") == 1:
        folder, source = _download(target, revision, weights), target
    else:
        known = ", ".join(ALIASES)
        raise CheckpointError(f"no model {model!r}: give a folder, a Hub id (owner/name) or one of: {known}")
    config = _read_config(folder, model)
    is_folder = source == model
    name = model if model in ALIASES else (folder.resolve().name if folder.name and is_folder else "")
    return Checkpoint(
        name or target.split("/")[-1],
        source,
        folder,
        config,
        find_family(config.model_type),
        revision,
        weights or source == model,
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, from its index where there is one.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(_index(index)["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names; download it again")
    if not files:
        pickles = [p.name for pattern in PICKLES for p in folder.glob(pattern)]
        if pickles:
            raise CheckpointError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run code when opened; "
                "convert them to safetensors with save_pretrained"
            )
        raise CheckpointError(f"{folder} has no weights: expected {SINGLE} or {INDEX}")
    return files


def _index(path: Path) -> dict[str, Any]:
    """The index of a sharded checkpoint."""
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        assert isinstance(index["weight_map"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); download it again") from error
    return index


def _read_config(folder: Path, model: str) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{model}: {folder} has no config.json; it is not a Hugging Face checkpoint")
    try:
        raw = json.loads(path.read_text())
        model_type = raw["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a model's configuration ({error!r})") from error
    if "auto_map" in raw:
        raise CheckpointError(f"{model} needs code from its own repository (trust_remote_code), which is never run")
    find_family(model_type)  # refuses an unsupported family before transformers reads the rest
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{path} is not a valid {model_type} configuration: {_first_line(error)}") from error


def _download(repo: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES, *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"cannot download {repo}{at} ({type(error).__name__}: {_first_line(error)}); "
            "check the name and the network, or give a local folder"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

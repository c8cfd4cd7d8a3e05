"""Checkpoints: from an alias, a Hub id or a folder to a configuration and an index of safetensors weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.errors import CheckpointError, in_one_line
from iwp_export.exporter.config_schema import BEFORE_READING, DECODER, ELEMENT_TYPES, check_rows, shortened
from iwp_export.exporter.recognise import refuse_config, refuse_folder
from iwp_export.exporter.weights import FLOATS, SINGLE, StoredTensor, checkpoint_digest, stored_tensors, weight_index
from iwp_export.models import ALIASES, find_family
from iwp_export.models.common.family import Family

SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "config.json",
    "generation_config.json",
)
"""What the runtime needs to turn prompts and images into tensors and tokens into text."""


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
        commit, named = self.folder.name, self.named_weights  # the commit that the configuration is of
        _download(self.source, commit, [named or SINGLE])
        if index := weight_index(self.folder, named):
            _download(self.source, commit, index.files)
        return replace(self, is_local=True)

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    def written(self) -> dict[str, Any]:
        """What config.json itself says, without transformers' defaults."""
        return dict(json.loads((self.folder / "config.json").read_bytes()))

    def weights(self) -> dict[str, StoredTensor]:
        """Every tensor that transformers would load, by its name in the files.

        Raises:
            CheckpointError: see `iwp_export.exporter.weights.stored_tensors`.
        """
        return stored_tensors(self.folder, self.named_weights)

    def dtype(self) -> str:
        """The element type in which `from_pretrained` loads it: config.json's, else the index's or first weight's.

        Empty if only weights that are not on this machine could say.

        Raises:
            CheckpointError: as `weights`.
        """
        if self.config.dtype is not None:
            return str(self.config.dtype).removeprefix("torch.")
        index = weight_index(self.folder, self.named_weights)
        if index is not None and index.metadata.get("dtype") in ELEMENT_TYPES:
            return str(index.metadata["dtype"])
        stored = self.weights().values() if self.is_local else ()
        return next((FLOATS[tensor.dtype].name for tensor in stored if tensor.dtype in FLOATS), "")

    def size(self) -> int:
        """Number of values of an export: a tied embedding counts once, a tower's layers after the chosen one do not.

        While the weights are not on this machine, the configuration says what is tied.

        Raises:
            CheckpointError: as `weights`; or see `iwp_export.exporter.loading`.
        """
        import torch

        from iwp_export.exporter.loading import empty_model, loaded_tensors

        with empty_model(self.config, self.folder) as model:
            if self.is_local:
                loaded_tensors(model, self.weights())  # also unties what differs
            graph, every = self.family.vision_graph(model), list(model.parameters())
            gradients = torch.autograd.grad(graph.module(**graph.inputs).sum(), every, allow_unused=True)
            vision = [each for each, gradient in zip(every, gradients, strict=True) if gradient is not None]
            parts = (self.family.language_model(model), self.family.head(model))
            decoder = {parameter for part in parts for parameter in part.parameters()}
            return sum(parameter.numel() for parameter in (*vision, *decoder))

    def digest(self) -> str:
        """SHA-256 that tells this model from another; its weights must be on this machine.

        Raises:
            CheckpointError: as `weights`; or see `iwp_export.exporter.weights.checkpoint_digest`.
        """
        return checkpoint_digest(self.folder / "config.json", self.weights())

    @property
    def named_weights(self) -> str | None:
        """The file of weights that config.json names, if it does."""
        named = getattr(self.config, "transformers_weights", None)
        return named if named is None else str(named)

    def load_model(self, dtype: str = "float32") -> Any:
        """The checkpoint's stock transformers model, ready for inference.

        Args:
            dtype: element type of weights and activations, by torch's name.
        """
        import torch
        from transformers import AutoModelForImageTextToText

        with _no_bars():
            return AutoModelForImageTextToText.from_pretrained(
                self.folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
            ).eval()

    def processor_files(self) -> list[Path]:
        """Paths of `PROCESSOR_FILES` that are there, relative to the checkpoint's folder."""
        found = [file for pattern in PROCESSOR_FILES for file in sorted(self.folder.glob(pattern))]
        return [file.relative_to(self.folder) for file in found if file.is_file()]


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
    remote = not folder.is_dir()
    if not remote:
        if revision is not None:
            raise CheckpointError(
                f"revision {revision} is for a Hub id, but {model} is a folder; leave it out", options=("revision",)
            )
        source = model
    elif "/" in target and not target.startswith((".", "/", "~")) and target.count("/") == 1:
        folder, source = _download(target, revision, SMALL_FILES), target
    else:
        known = ", ".join(ALIASES)
        raise CheckpointError(f"no model {model!r}: give a folder, a Hub id (owner/name) or one of: {known}")
    config = _read_config(folder, model)
    name = model if model in ALIASES else (folder.resolve().name if folder.name and not remote else "")
    name = name or target.split("/")[-1]
    checkpoint = Checkpoint(name, source, folder, config, find_family(config.model_type), revision, not remote)
    return checkpoint.with_weights() if weights else checkpoint


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' progress bars off stderr, where the commands of this package show their own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_config(folder: Path, model: str) -> Any:
    refuse_folder(folder, model)
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_bytes())
        refuse_config(raw, model)
        model_type = raw["model_type"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a model's configuration ({error!r})") from error
    check_rows(raw, path, BEFORE_READING)
    family = find_family(model_type)  # refuses an unsupported family before transformers reads the rest
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a valid {model_type} configuration: {shortened(in_one_line(error))}"
        ) from error
    check_rows(config, path, {**DECODER, **family.config_rows}, written=raw)
    return config


def _download(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"cannot download {repo}{at} ({type(error).__name__}: {shortened(in_one_line(error))}); "
            "check the name and the network, or give a local folder"
        ) from error

"""Export: a checkpoint becomes a bundle with a vision graph and a pruned decoder graph."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iwp_export import __version__
from iwp_export.bundle.manifest import DecoderInfo, GraphSpec, Manifest, ModelInfo, TensorSpec, VisionInfo
from iwp_export.bundle.store import BundleWriter
from iwp_export.errors import BackendError, CheckpointError, SettingsError
from iwp_export.export.checkpoint import Checkpoint, open_checkpoint
from iwp_export.progress import progress
from iwp_export.pruning.settings import PruningSettings

if TYPE_CHECKING:
    import onnx_ir as ir

Dtype = Literal["auto", "float32", "float16"]

DECODERS = ("llama", "mistral", "qwen2")
"""Language models of the plain shape that `PrunedDecoder` runs: pre-norm, gated MLP, full attention."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length of the prompt."""

IN_FLIGHT_BYTES = 64 << 20
"""Weights that may be in memory at once while a graph is written."""

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True)
class ExportPlan:
    """What an export would make, from the configuration and the weights' headers alone."""

    model: ModelInfo
    settings: PruningSettings
    decoder: DecoderInfo
    vision: VisionInfo
    weight_bytes: int

    @property
    def num_visual(self) -> int:
        return self.vision.tokens_per_image

    @property
    def num_kept(self) -> int:
        return self.settings.num_keep(self.num_visual)

    def cache_bytes(self, text_tokens: int, pruned: bool = True) -> int:
        """Bytes of the key/value cache after a prompt of one image and `text_tokens` text tokens."""
        full, kept = self.num_visual + text_tokens, self.num_kept + text_tokens
        below = self.settings.layer if pruned else self.decoder.layers
        return self.decoder.cache_bytes([full] * below + [kept] * (self.decoder.layers - below))


def plan_export(
    model: str, settings: PruningSettings, *, dtype: Dtype = "auto", revision: str | None = None
) -> ExportPlan:
    """Read what is needed to say what `export_bundle` would do; nothing is written.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or supported.
        SettingsError: the model has too few layers for `settings.layer`.
    """
    return _plan(open_checkpoint(model, revision=revision, weights=False), settings, dtype)


def export_bundle(
    model: str,
    output: Path | str,
    settings: PruningSettings | None = None,
    *,
    dtype: Dtype = "auto",
    force: bool = False,
    revision: str | None = None,
) -> Path:
    """Export a checkpoint to a bundle.

    Args:
        model: an alias, a Hub id or a folder.
        output: folder of the bundle; it appears whole or not at all.
        settings: where and how to prune; the defaults if left out.
        dtype: element type of weights and activations; `auto` is float16 for a 16-bit checkpoint, else float32.
        force: replace a bundle that is there already.
        revision: branch, tag or commit of a Hub id.

    Returns:
        The bundle's folder.

    Raises:
        OutputError: the output exists, or cannot be written.
        CheckpointError, SettingsError: see `plan_export`.
        BackendError: torch or another package that exporting needs is not installed.
    """
    settings = settings or PruningSettings()
    writer = BundleWriter(output, force)  # refuses an existing output before any work
    _require_tools()
    checkpoint = open_checkpoint(model, revision=revision)
    plan = _plan(checkpoint, settings, dtype)
    import torch

    from iwp_export.export.trace import trace_decoder, trace_vision

    torch_dtype = getattr(torch, plan.decoder.dtype)
    weights = checkpoint.weights()
    with writer:
        graphs = {}
        with progress("Tracing the vision tower"):
            vision = trace_vision(checkpoint, weights, torch_dtype)
        graphs["vision"] = _save(vision, writer.folder, "vision")
        with progress("Tracing the language model"):
            decoder = trace_decoder(checkpoint, weights, settings, torch_dtype)
        graphs["decoder"] = _save(decoder, writer.folder, "decoder")
        processor = writer.folder / "processor"
        processor.mkdir()
        for file in checkpoint.processor_files():
            shutil.copyfile(file, processor / file.name)
        versions = {name: importlib.metadata.version(name) for name in TOOLS}
        manifest = Manifest(
            plan.model, settings, plan.decoder, plan.vision, graphs, tools={"iwp-export": __version__, **versions}
        )
        writer.commit(manifest)
    return Path(output)


def _require_tools() -> None:
    missing = []
    for name in (*TOOLS, "safetensors"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise BackendError(f"exporting needs {', '.join(missing)}; install with: pip install 'iwp-export[export]'")


def _plan(checkpoint: Checkpoint, settings: PruningSettings, dtype: Dtype) -> ExportPlan:
    config, text = checkpoint.config, checkpoint.config.text_config
    _check_decoder(text)
    if settings.layer >= text.num_hidden_layers:
        raise SettingsError(
            f"layer {settings.layer} is not below the {text.num_hidden_layers} layers of {checkpoint.name}; "
            f"choose --layer 0 to {text.num_hidden_layers - 1}"
        )
    generation = _generation_config(checkpoint)
    parameters, half = checkpoint.size()
    name = ("float16" if half else "float32") if dtype == "auto" else dtype
    heads = text.num_attention_heads
    decoder = DecoderInfo(
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        heads=heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        dtype=name,
        bos_token_id=generation["bos"],
        eos_token_ids=generation["eos"],
        pad_token_id=generation["pad"],
    )
    size = parameters * {"float16": 2, "float32": 4}[name]
    architecture = (config.architectures or ["unknown"])[0]
    info = ModelInfo(checkpoint.name, checkpoint.source, checkpoint.model_type, architecture, checkpoint.revision)
    return ExportPlan(info, settings, decoder, checkpoint.family.vision_info(config), size)


def _check_decoder(text: Any) -> None:
    if text.model_type not in DECODERS:
        raise CheckpointError(f"language model {text.model_type!r} is not supported; supported: {', '.join(DECODERS)}")
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise CheckpointError(f"rope_type {rope!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    windows = [kind for kind in getattr(text, "layer_types", None) or [] if kind != "full_attention"]
    if windows or (text.model_type == "mistral" and text.sliding_window is not None):
        raise CheckpointError(f"sliding-window attention is not supported ({text.model_type} with a window)")


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Special tokens as transformers' `generate` takes them: generation_config.json, then the configuration."""
    from transformers import GenerationConfig

    if (checkpoint.folder / "generation_config.json").is_file():
        source = GenerationConfig.from_pretrained(checkpoint.folder)
    else:
        source = checkpoint.config.text_config
    eos = source.eos_token_id
    eos = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    return {"bos": source.bos_token_id, "eos": eos, "pad": source.pad_token_id}


def _save(model: ir.Model, folder: Path, name: str) -> GraphSpec:
    """Write a graph and its weights, tensor by tensor; returns its entry in the manifest."""
    import onnx_ir as ir

    spec = GraphSpec(
        file=f"{name}.onnx",
        weights=f"{name}.weights",
        opset=model.opset_imports[""],
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
    )
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    with progress(f"Writing {spec.weights}", total, unit="bytes") as advance:
        ir.save(
            model,
            folder / spec.file,
            external_data=spec.weights,
            callback=lambda tensor, info: advance(tensor.nbytes),
            max_workers=1,
            max_in_flight_bytes=IN_FLIGHT_BYTES,
        )
    if not (folder / spec.weights).exists():  # a graph whose tensors are all small keeps them inside
        (folder / spec.weights).touch()
    return spec


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)

"""Tracing a model's two graphs on fake tensors: no weight is loaded to find out what the graph is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter.onnx_fusions
import torch
from torch import Tensor, nn
from torch.export import Dim

from iwp_export.backends.torch.decoder import PrunedDecoder, select_as_symbol
from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import Checkpoint
from iwp_export.exporter.loading import check_tensor, empty_model, loaded_tensors
from iwp_export.exporter.streaming import Losses, rename_dimension, stream_weights
from iwp_export.exporter.weights import StoredTensor
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION, select_tokens_function
from iwp_export.pruning.settings import PruningSettings

OPSET = 23
"""The first opset with Attention, RotaryEmbedding and RMSNormalization."""

MAX_DIM = 1 << 20

TRACE_TOKENS = 23
TRACE_FEATURES = 11
TRACE_QUERIES = 3
TRACE_PAST = (7, 5)
"""Lengths of the traced example; distinct primes, so that no two dimensions are taken for one."""


def trace_vision(
    checkpoint: Checkpoint, weights: Mapping[str, StoredTensor], dtype: torch.dtype, losses: Losses
) -> ir.Model:
    """The graph `vision`: a picture's inputs -> `image_features` [N, D]."""
    with empty_model(checkpoint.config, checkpoint.folder, dtype) as model:
        loaded = loaded_tensors(model, weights)
        graph = checkpoint.family.vision_graph(model)
        module = graph.module.eval()
        sources = _sources(module, model, loaded)
        dims = {name: Dim(name, max=MAX_DIM) for axes in graph.dims.values() for name in axes.values()}
        shapes = {name: {axis: dims[dim] for axis, dim in graph.dims.get(name, {}).items()} for name in graph.inputs}
        program = _export(module, tuple(graph.inputs.values()), list(graph.inputs), ["image_features"], shapes)
    return _finish(program, module, sources, losses)


def trace_decoder(
    checkpoint: Checkpoint,
    weights: Mapping[str, StoredTensor],
    settings: PruningSettings,
    dtype: torch.dtype,
    losses: Losses,
) -> ir.Model:
    """The graph `decoder`, for prefill and decode; see `PrunedDecoder.forward` for its inputs and outputs."""
    text = checkpoint.config.text_config
    layers = text.num_hidden_layers
    with empty_model(checkpoint.config, checkpoint.folder, dtype) as model:
        loaded = loaded_tensors(model, weights)
        module = PrunedDecoder(model, checkpoint.family, settings, select_as_symbol(settings)).eval()
        sources = _sources(module, model, loaded)
        attention = module.language_model.layers[0].self_attn
        lengths = [TRACE_PAST[layer >= settings.layer] for layer in range(layers)]
        heads = (attention.k_proj.out_features // attention.head_dim, attention.head_dim)
        past = [torch.zeros(1, heads[0], lengths[i // 2], heads[1], dtype=dtype) for i in range(2 * layers)]
        rows = [torch.zeros(1, TRACE_TOKENS, dtype=torch.int64) for _ in range(3)]  # one object would be one input
        queries = torch.zeros(TRACE_QUERIES, dtype=torch.int64)
        features = torch.zeros(TRACE_FEATURES, text.hidden_size, dtype=dtype)
        arguments = (rows[0], features, rows[1], queries, rows[2], torch.zeros(1, dtype=torch.int64), past)
        caches = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
        program = _export(
            module,
            arguments,
            [*DECODER_INPUTS, *(f"past_key_values.{name}" for name in caches)],
            ["logits", *(f"present.{name}" for name in caches), "kept_index"],
            _decoder_dimensions(layers, settings.layer),
        )
    graph = _finish(program, module, sources, losses)
    symbol = next(node for node in graph.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE))
    assert symbol.outputs[0].shape is not None
    rename_dimension(graph, str(symbol.outputs[0].shape[1]), "kept")
    function = ir.serde.deserialize_function(select_tokens_function(settings, OPSET))
    graph.functions[function.identifier()] = function
    graph.opset_imports[DOMAIN] = VERSION
    return graph


DECODER_INPUTS = ("input_ids", "image_features", "feature_index", "query_index", "position_ids", "num_kept")


def _decoder_dimensions(layers: int, pruning_layer: int) -> dict[str, Any]:
    tokens, full = Dim("tokens", max=MAX_DIM), Dim("past_full", max=MAX_DIM)
    pruned = Dim("past_pruned", max=MAX_DIM)
    shapes: dict[str, Any] = {name: {1: tokens} for name in DECODER_INPUTS}
    features, queries = Dim("features", max=MAX_DIM), Dim("queries", max=MAX_DIM)
    shapes.update(image_features={0: features}, query_index={0: queries}, num_kept={})
    shapes["past_key_values"] = [{2: full if i // 2 < pruning_layer else pruned} for i in range(2 * layers)]
    return shapes


def _export(
    module: nn.Module, arguments: tuple, input_names: list[str], output_names: list[str], shapes: dict[str, Any]
) -> ir.Model:
    """The graph of a module. Its initializers hold no values, so nothing is folded here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch's exporter warns of libraries that this project does not use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                arguments,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    finally:
        logging.disable(disabled)
    assert program is not None
    return program.model


def _sources(module: nn.Module, model: nn.Module, loaded: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The stored tensor of each parameter of `module`, which holds parts of `model`, and of its stored buffers.

    Raises:
        CheckpointError: the checkpoint lacks a parameter, or holds one in another shape or as no floating numbers.
    """
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    sources = {}
    for own_name, tensor in module.state_dict(keep_vars=True).items():
        name = names.get(id(tensor), own_name)
        stored = loaded.get(name)
        if stored is None and not isinstance(tensor, nn.Parameter):
            continue  # a buffer that no checkpoint stores is computed
        check_tensor(name, tensor.shape, stored)
        assert stored is not None
        sources[own_name] = stored
    return sources


def _finish(program: ir.Model, module: nn.Module, sources: Mapping[str, StoredTensor], losses: Losses) -> ir.Model:
    """Give the initializers their values, then let onnxscript fold constants and fuse norms."""
    for name, tensor in _computed_buffers(module).items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"config.json gives {name} values that are NaN or infinite")
        if name in program.graph.initializers and name not in sources:
            program.graph.initializers[name].const_value = ir.tensor(tensor.numpy(), name=name)
    stream_weights(program, sources, losses)
    onnxscript.optimizer.optimize_ir(program)
    onnxscript.rewriter.onnx_fusions.fuse(program)
    for node in program.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    return program


def _computed_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that no checkpoint stores (RoPE's frequencies, position ids), computed by a real copy of their owner."""
    buffers = {}
    for path, owner in module.named_modules():
        own = [name for name, _ in owner.named_buffers(recurse=False)]
        if own:
            real = type(owner)(owner.config)
            buffers.update({f"{path}.{name}": getattr(real, name).detach() for name in own})
    return buffers

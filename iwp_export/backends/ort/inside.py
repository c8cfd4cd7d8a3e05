"""A copy of a bundle's decoder graph that also returns what flows between its layers, for comparisons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iwp_export.backends.ort.providers import create_session
from iwp_export.errors import BackendError

INPUT_NORM = re.compile(r"(?:^|\.)layers\.(\d+)\.input_layernorm\.weight$")
"""The initializer that scales what enters a layer: what its norm reads is the residual stream."""
NORM = "RMSNormalization"


@dataclass(frozen=True)
class InsideNames:
    """Values of a decoder graph: the input of each layer; importance, keys and values as the pruning op gets them."""

    hidden: tuple[str, ...]
    choice: tuple[str, str, str]


class InsideGraph:
    """The copy, in memory alone; made when it is first used.

    Its weights are read from the bundle's own file, as the decoder's are.

    Args:
        path: the decoder's graph.
        provider, threads: see `create_session`.
    """

    def __init__(self, path: Path, provider: str, threads: int | None) -> None:
        self._path, self._provider, self._threads = path, provider, threads

    @cached_property
    def refusal(self) -> str:
        """Why there is no such copy; empty if there is one."""
        try:
            names = self.names
        except BackendError as error:
            return str(error)
        return "" if names.hidden else f"{self._path.name} has no layers that are known by name"

    @cached_property
    def names(self) -> InsideNames:
        """See `find_names`.

        Raises:
            BackendError: the graph cannot be read, or has no such values.
        """
        return find_names(self._model, self._path.name)

    @cached_property
    def session(self) -> Any:
        """The `onnxruntime.InferenceSession`.

        Raises:
            BackendError: as `names`, and see `create_session`.
        """
        from onnx import ValueInfoProto

        present = {output.name for output in self._model.graph.output}
        wanted = dict.fromkeys((*self.names.hidden, *self.names.choice))
        self._model.graph.output.extend(ValueInfoProto(name=name) for name in wanted if name not in present)
        return create_session(self._model.SerializeToString(), self._provider, self._threads, self._path.parent)

    @cached_property
    def _model(self) -> Any:
        try:
            import onnx
        except ImportError as error:
            raise BackendError(
                "to look inside of a graph needs onnx; install with: pip install 'iwp-export[build]'"
            ) from error
        return onnx.load(str(self._path), load_external_data=False)


def find_names(model: Any, where: str) -> InsideNames:
    """The values to look at.

    Args:
        model: an `onnx.ModelProto` of a bundle's decoder.
        where: what to call it in errors.

    Raises:
        BackendError: it has no pruning op, or a layer whose input cannot be told.
    """
    from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE

    hidden: dict[int, str] = {}
    choice: tuple[str, ...] = ()
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            choice = tuple(node.input[:3])
        for name in node.input:
            layer = INPUT_NORM.search(name)
            if layer and node.op_type == NORM:
                hidden[int(layer[1])] = node.input[0]
    _check_layers(model.graph, hidden, where)
    if len(choice) != 3:
        raise BackendError(f"{where} has no pruning op to look at")
    return InsideNames(tuple(hidden[layer] for layer in sorted(hidden)), (choice[0], choice[1], choice[2]))


def _check_layers(graph: Any, hidden: Mapping[int, str], where: str) -> None:
    layers = sum(output.name.endswith(".key") for output in graph.output)
    if missing := set(range(layers)) - hidden.keys():
        raise BackendError(f"{where} does not tell the input of layer {min(missing)}: its norm has another name")

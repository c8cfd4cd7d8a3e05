"""Inputs of the selection, shared by the tests of its implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from iwp_export.pruning.onnx_function import DOMAIN, INPUTS, OP_TYPE, VERSION, node_attributes, select_tokens_function
from iwp_export.pruning.settings import PruningSettings


@dataclass
class Case:
    """One sample: visual tokens between text tokens; arrays as `iwp::SelectTokens` takes them, without the batch."""

    query: np.ndarray
    key: np.ndarray
    key_rotated: np.ndarray
    value: np.ndarray
    is_visual: np.ndarray

    @property
    def num_visual(self) -> int:
        return int(self.is_visual.sum())

    @property
    def num_text(self) -> int:
        return len(self.is_visual) - self.num_visual

    def visual(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The oracle's inputs: query, and key, key_rotated, value of the visual tokens alone."""
        key, rotated, value = (x[:, self.is_visual] for x in (self.key, self.key_rotated, self.value))
        return self.query, key, rotated, value

    def feeds(self, num_keep: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name)[None].astype(dtype) for name in INPUTS[:4]}
        return {**arrays, "is_visual": self.is_visual[None], "num_kept": np.array([self.num_text + num_keep])}

    def kept(self, chosen: np.ndarray) -> np.ndarray:
        """Indices among all tokens when `chosen` of the visual ones are kept."""
        keep = ~self.is_visual
        keep[np.flatnonzero(self.is_visual)[chosen]] = True
        return np.flatnonzero(keep)

    def chosen(self, kept: np.ndarray) -> np.ndarray:
        """Inverse of `kept`."""
        return np.flatnonzero(np.isin(np.flatnonzero(self.is_visual), kept))


def random_case(
    seed: int, n: int, *, text: int = 5, heads: int = 4, kv_heads: int = 2, size: int = 16, clusters: int = 0
) -> Case:
    """A random sample; with `clusters`, visual tokens are near-copies of a few, as on a plain background."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        x = rng.standard_normal((kv_heads, n + text, size))
        if clusters:
            centres = rng.standard_normal((kv_heads, clusters, size))
            x = centres[:, rng.integers(clusters, size=n + text)] + 0.1 * x
        return x.astype(np.float32)

    is_visual = np.zeros(n + text, bool)
    is_visual[rng.permutation(n + text)[:n]] = True
    query = rng.standard_normal((heads, size)).astype(np.float32)
    return Case(query, draw(), draw(), draw(), is_visual)


def op_model(case: Case, settings: PruningSettings, dtype: int = TensorProto.FLOAT, opset: int = 23) -> Any:
    """A model of the op alone, with its function."""
    kv_heads, _, size = case.key.shape
    shapes = {"query": [1, case.query.shape[0], size], "is_visual": [1, "S"], "num_kept": [1]}
    types = {"is_visual": TensorProto.BOOL, "num_kept": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, dtype), shapes.get(name, [1, kv_heads, "S", size]))
        for name in INPUTS
    ]
    output = helper.make_tensor_value_info("kept_index", TensorProto.INT64, [1, "K"])
    node = helper.make_node(OP_TYPE, INPUTS, ["kept_index"], domain=DOMAIN, **node_attributes(settings))
    return helper.make_model(
        helper.make_graph([node], "select", inputs, [output]),
        functions=[select_tokens_function(settings, opset)],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )

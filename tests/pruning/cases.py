"""Inputs of the scores and of the selection, shared by the tests of their implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from iwp_export.pruning.onnx_function import (
    DOMAIN,
    INPUTS,
    OP_TYPE,
    VERSION,
    node_attributes,
    select_tokens_function,
)
from iwp_export.pruning.settings import PruningSettings


@dataclass
class Case:
    """One sample: visual tokens between text tokens; arrays as `iwp::SelectTokens` takes them, without the batch."""

    importance: np.ndarray
    key: np.ndarray
    value: np.ndarray
    is_visual: np.ndarray

    @property
    def num_visual(self) -> int:
        return int(self.is_visual.sum())

    @property
    def num_text(self) -> int:
        return len(self.is_visual) - self.num_visual

    def visual(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The oracle's inputs: importance, key and value of the visual tokens alone."""
        visual = self.is_visual
        return self.importance[visual], self.key[:, visual], self.value[:, visual]

    def feeds(self, num_keep: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        return {
            "importance": self.importance[None],
            "key": self.key[None].astype(dtype),
            "value": self.value[None].astype(dtype),
            "is_visual": self.is_visual[None],
            "num_kept": np.array([self.num_text + num_keep]),
        }

    def kept(self, chosen: np.ndarray) -> np.ndarray:
        """Indices among all tokens when `chosen` of the visual ones are kept."""
        keep = ~self.is_visual
        keep[np.flatnonzero(self.is_visual)[chosen]] = True
        return np.flatnonzero(keep)

    def chosen(self, kept: np.ndarray) -> np.ndarray:
        """Inverse of `kept`."""
        return np.flatnonzero(np.isin(np.flatnonzero(self.is_visual), kept))


def random_case(seed: int, n: int, *, text: int = 5, kv_heads: int = 2, size: int = 16, clusters: int = 0) -> Case:
    """A random sample; with `clusters`, visual tokens are near-copies of a few, as on a plain background.

    Importance is log-normal, as kernels are; at text it is no number, which no implementation may notice.
    """
    rng = np.random.default_rng(seed)
    is_visual = np.zeros(n + text, bool)
    is_visual[rng.permutation(n + text)[:n]] = True
    importance = np.where(is_visual, np.exp(rng.standard_normal(n + text)), np.nan).astype(np.float32)
    key, value = (random_states(rng, kv_heads, n + text, size, clusters) for _ in range(2))
    return Case(importance, key, value, is_visual)


def random_states(rng: np.random.Generator, heads: int, tokens: int, size: int, clusters: int = 0) -> np.ndarray:
    """float32 [heads, tokens, size]; with `clusters`, tokens are near-copies of that many."""
    x = rng.standard_normal((heads, tokens, size))
    if clusters:
        centres = rng.standard_normal((heads, clusters, size))
        x = centres[:, rng.integers(clusters, size=tokens)] + 0.1 * x
    return x.astype(np.float32)


def op_model(case: Case, settings: PruningSettings, dtype: int = TensorProto.FLOAT, opset: int = 23) -> Any:
    """A model of the op alone, with its function."""
    kv_heads, _, size = case.key.shape
    types: dict[str, tuple[int, list[int | str]]] = {
        "importance": (TensorProto.FLOAT, [1, "S"]),
        "key": (dtype, [1, kv_heads, "S", size]),
        "value": (dtype, [1, kv_heads, "S", size]),
        "is_visual": (TensorProto.BOOL, [1, "S"]),
        "num_kept": (TensorProto.INT64, [1]),
    }
    inputs = [onnx.helper.make_tensor_value_info(name, *types[name]) for name in INPUTS]
    output = onnx.helper.make_tensor_value_info("kept_index", TensorProto.INT64, [1, "K"])
    node = onnx.helper.make_node(OP_TYPE, INPUTS, ["kept_index"], domain=DOMAIN, **node_attributes(settings))
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "select", inputs, [output]),
        functions=[select_tokens_function(settings, opset)],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )

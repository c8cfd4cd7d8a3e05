"""`iwp::SelectTokens` as an ONNX model-local function of standard ops: runs wherever ONNX runs, no library to ship.

Contract of the op (domain `iwp`, version 3), the same for every implementation:

    kept_index int64 [B, K] = SelectTokens(importance float32 [B, S], key [B, Hkv, S, d], value [B, Hkv, S, dv],
                                           is_visual bool [B, S], num_kept int64 [1])

K is `num_kept[0]`: how many of a sample's S tokens go on, text and visual together. Every text token is kept, and
the K - (number of text tokens) visual ones that the attribute `select` chooses, by Algorithm 1 (`mmr`) or by
`coverage`; indices are ascending. mmr brings `importance` to [0, 1] over a sample's visual tokens, all ones if it is
the same for all; whatever it holds at text is ignored, and coverage ignores all of it. `key` is the one that
similarity compares. All arithmetic is float32, ties go to the lower index. The samples of a batch are independent and
share K. The function below takes a batch of one and fails on more.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.parser

from iwp_export.pruning.onnx_coverage import coverage
from iwp_export.pruning.onnx_mmr import mmr
from iwp_export.pruning.settings import PruningSettings

DOMAIN = "iwp"
OP_TYPE = "SelectTokens"
VERSION = 3
INPUTS = ("importance", "key", "value", "is_visual", "num_kept")


def node_attributes(settings: PruningSettings) -> dict[str, Any]:
    """Attributes of the op's node: the settings of the selection, and what TensorRT needs to find and shape a plugin.

    `plugin_namespace` makes TensorRT 10.15 and later prefer the plugin to this function;
    `tensorrt_plugin_shape_input_indices` says that `num_kept` is a shape tensor, since it is the output's length.
    """
    return {
        **settings.selection(),
        "plugin_namespace": DOMAIN,
        "plugin_version": str(VERSION),
        "tensorrt_plugin_shape_input_indices": [INPUTS.index("num_kept")],
    }


def select_tokens_function(settings: PruningSettings, opset: int) -> onnx.FunctionProto:
    """The function's body, specialised to the settings' variants; chunk, growth and penalty stay attributes.

    Args:
        settings: which selection, similarity and normalisation of duplication the body computes.
        opset: version of the standard operators, 18 or later.
    """
    attributes = ", ".join(node_attributes(settings))
    choose = coverage if settings.select == "coverage" else mmr
    body = "\n".join([_PREPARE, choose(settings), _COLLECT])
    text = (
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f"{OP_TYPE} <{attributes}> ({', '.join(INPUTS)}) => (kept_index) {{\n{body}\n}}"
    )
    return onnx.parser.parse_function(text)


def op_alone(settings: PruningSettings, kv_heads: int, size: int, element_type: int, opset: int) -> onnx.ModelProto:
    """A model of the op alone, with its function, for one sample.

    Args:
        settings: the selection's.
        kv_heads, size: number of key/value heads, and the length of each.
        element_type: of keys and values (TensorProto.DataType).
        opset: version of the standard operators.
    """
    types: dict[str, tuple[int, list[int | str]]] = {
        "importance": (onnx.TensorProto.FLOAT, [1, "S"]),
        "key": (element_type, [1, kv_heads, "S", size]),
        "value": (element_type, [1, kv_heads, "S", size]),
        "is_visual": (onnx.TensorProto.BOOL, [1, "S"]),
        "num_kept": (onnx.TensorProto.INT64, [1]),
    }
    inputs = [onnx.helper.make_tensor_value_info(name, *types[name]) for name in INPUTS]
    output = onnx.helper.make_tensor_value_info("kept_index", onnx.TensorProto.INT64, [1, "K"])
    node = onnx.helper.make_node(OP_TYPE, INPUTS, ["kept_index"], domain=DOMAIN, **node_attributes(settings))
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "select", inputs, [output]),
        functions=[select_tokens_function(settings, opset)],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )


_PREPARE = """
  zero = Constant <value = int64 {0}> ()
  zero_f = Constant <value = float {0.0}> ()
  one_f = Constant <value = float {1.0}> ()
  two_f = Constant <value = float {2.0}> ()
  lowest = Constant <value = float {-1e30}> ()
  highest = Constant <value = float {1e30}> ()
  axis_0 = Constant <value = int64[1] {0}> ()
  axis_1 = Constant <value = int64[1] {1}> ()
  axis_last = Constant <value = int64[1] {-1}> ()
  key_0 = Squeeze (key, axis_0)
  value_0 = Squeeze (value, axis_0)
  visual = Squeeze (is_visual, axis_0)
  k = Cast <to = 1> (key_0)
  v = Cast <to = 1> (value_0)
  visual_f = Cast <to = 1> (visual)
  visual_i = Cast <to = 7> (visual)
  num_visual = ReduceSum <keepdims = 0> (visual_i)
  num_tokens = Size (visual)
  num_text = Sub (num_tokens, num_visual)
  total = Squeeze (num_kept, axis_0)
  budget = Sub (total, num_text)
  size = Shape <start = 2, end = 3> (k)
  size_f = Cast <to = 1> (size)
  root = Sqrt (size_f)
  twice_root = Mul (root, two_f)
  some = Less (zero, budget)
  not_all = Less (budget, num_visual)
  begins = And (some, not_all)
"""
"""What both selections need. `begins`: there is a choice to make; in a decode step there is none."""

_COLLECT = """
  still_left = Greater (left_end, zero_f)
  dropped = And (still_left, begins)
  none_kept = LessOrEqual (budget, zero)
  visual_dropped = And (visual, none_kept)
  gone = Or (dropped, visual_dropped)
  stays = Not (gone)
  stays_f = Cast <to = 1> (stays)
  flags, members = TopK <axis = 0> (stays_f, num_kept)
  members_sorted, order = TopK <axis = 0, largest = 0> (members, num_kept)
  kept_index = Unsqueeze (members_sorted, axis_0)
"""
"""From `left_end` [S], above 0 at a visual token that no round took, to the indices that stay."""

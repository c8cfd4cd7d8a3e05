"""One build in TensorRT-RTX with the plugin from a library or from Python; prints what happened as JSON.

A process of its own: a process has one plugin registry, and a failing plugin may abort it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from iwp_export.engine.flavour import load_flavour
from iwp_export.engine.kernels import NoKernels
from iwp_export.engine.log import make_logger
from iwp_export.engine.plugin import make_creator
from iwp_export.pruning.onnx_function import DOMAIN, INPUTS, OP_TYPE, VERSION, node_attributes
from iwp_export.pruning.settings import PruningSettings

KV_HEADS, HEAD_DIM, TOKENS = 2, 64, 600


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Parse and build.

    Args:
        request: `library`, or null for the Python plugin; `attributes` of the node that differ from the defaults, null
            to leave one out; `data_type`; `profiles`, the most tokens of each; `embed`, whether the library goes into
            the plan; `plan`, where it is written.
    """
    trt = load_flavour("rtx").trt
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    registry = trt.get_plugin_registry()
    creator = None
    if request["library"]:
        assert registry.load_library(request["library"]) is not None
    else:
        creator = make_creator(trt, NoKernels(), print)
        assert registry.register_creator(creator, DOMAIN)
    found = registry.get_creator(OP_TYPE, str(VERSION), DOMAIN)
    answer: dict[str, Any] = {"fields": {f.name: f.type.name for f in found.field_names}, "layers": [], "built": False}

    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    answer["parsed"] = parser.parse(_model(request).SerializeToString())
    answer["layers"] = [network.get_layer(i).type.name for i in range(network.num_layers)]
    if answer["parsed"]:
        output = network.get_output(0)
        answer["output"] = [str(output.dtype), list(output.shape)]
        plan = builder.build_serialized_network(network, _config(trt, builder, request))
        answer["built"] = plan is not None
        if plan is not None:
            Path(request["plan"]).write_bytes(bytes(plan))
    answer["errors"] = logger.errors
    return answer


def _model(request: dict[str, Any]) -> onnx.ModelProto:
    type_ = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}
    element = type_[request["data_type"]]
    states = [helper.make_tensor_value_info(name, element, [1, KV_HEADS, "S", HEAD_DIM]) for name in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("importance", TensorProto.FLOAT, [1, "S"]),
        *states,
        helper.make_tensor_value_info("is_visual", TensorProto.INT32, [1, "S"]),
        helper.make_tensor_value_info("num_kept", TensorProto.INT64, [1]),
    ]
    attributes = {**node_attributes(PruningSettings()), **request["attributes"]}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(OP_TYPE, INPUTS, ["kept_index"], domain=DOMAIN, **attributes)
    output = helper.make_tensor_value_info("kept_index", TensorProto.INT64, [1, "K"])
    graph = helper.make_graph([node], "selection", inputs, [output])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _config(trt: Any, builder: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    if request["embed"]:
        config.plugins_to_serialize = [request["library"]]
    for longest in request["profiles"]:
        profile = builder.create_optimization_profile()
        lengths = (1, min(77, longest), longest)
        for name in ("key", "value"):
            profile.set_shape(name, *[(1, KV_HEADS, n, HEAD_DIM) for n in lengths])
        for name in ("importance", "is_visual"):
            profile.set_shape(name, *[(1, n) for n in lengths])
        profile.set_shape_input("num_kept", [1], [min(33, longest)], [longest])
        config.add_optimization_profile(profile)
    return config


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

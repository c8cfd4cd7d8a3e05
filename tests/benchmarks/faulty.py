"""Artefacts with one deliberate fault each: copies of a bundle whose files, graph or session are changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from iwp_export.backends.ort.session import OrtCache, _bits, _ort_value
from iwp_export.backends.session import Cache, Features, StepInputs, StepOutput
from iwp_export.bundle.manifest import MANIFEST_JSON
from iwp_export.bundle.outputs import MANIFEST
from iwp_export.bundle.verify import hash_files, plain_files
from iwp_export.pruning.onnx_function import OP_TYPE
from iwp_export.runtime.pipeline import Pipeline
from tests.parity.tampered import Tampered

NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def copied(bundle: Path, target: Path) -> Path:
    """A bundle's copy, in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(bundle, target)
    return target


def renewed(bundle: Path) -> Path:
    """A changed bundle whose manifest has the hashes of its files: nothing but its numbers can tell."""
    manifest = MANIFEST_JSON.read(bundle / MANIFEST, str(bundle))
    names = [name for name in plain_files(bundle) if name != MANIFEST]
    files = hash_files(bundle, names, "Hashing")
    (bundle / MANIFEST).write_text(MANIFEST_JSON.to_text(replace(manifest, files=files)))
    return bundle


def change_weights(bundle: Path, name: str, change: Callable[[Any], Any], graph: str = "decoder") -> None:
    """Change an initializer that is stored in the weights file; `name` is a part of its name."""
    model = onnx.load(str(bundle / f"{graph}.onnx"), load_external_data=False)
    [tensor] = [each for each in model.graph.initializer if name in each.name and each.external_data]
    where = {entry.key: entry.value for entry in tensor.external_data}
    with (bundle / where["location"]).open("r+b") as file:
        file.seek(int(where["offset"]))
        kind = NUMPY[tensor.data_type]
        values = np.frombuffer(file.read(int(where["length"])), kind).reshape(tensor.dims)
        file.seek(int(where["offset"]))
        file.write(np.ascontiguousarray(change(values.copy()), kind).tobytes())


def edit_graph(bundle: Path, edit: Callable[[Any], None]) -> None:
    """Change the decoder's graph."""
    path = bundle / "decoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    edit(model.graph)
    onnx.save(model, str(path))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def shift_positions(graph: Any) -> None:
    """Every position is one further on."""
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "fault_one"))
    for node in graph.node:
        node.input[:] = ["fault_positions" if name == "position_ids" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Add", ["position_ids", "fault_one"], ["fault_positions"]))


def renumber_positions(graph: Any) -> None:
    """Behind the pruning layer the tokens that are left are numbered from 0."""
    op = next(node for node in graph.node if node.op_type == OP_TYPE)
    makers = {output: node for node in graph.node for output in node.output}

    def from_kept(name: str) -> bool:
        maker = makers.get(name)
        return maker is not None and (maker is op or any(from_kept(each) for each in maker.input[:1]))

    rotary = {name for node in graph.node if node.op_type == "RotaryEmbedding" for name in node.input[1:]}
    picked = [node for node in graph.node if node.op_type == "Gather" and node.output[0] in rotary]
    picked = [node for node in picked if from_kept(node.input[1])]
    assert len(picked) == 2, "cos and sin of the tokens that are left"
    kept = picked[0].input[1]
    graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), f"fault_{value}") for value in (0, 1))
    place = min(list(graph.node).index(node) for node in picked)
    for node in picked:
        node.input[1] = "fault_order"
    for node in reversed(
        (
            helper.make_node("Size", [kept], ["fault_count"]),
            helper.make_node("Range", ["fault_0", "fault_count", "fault_1"], ["fault_order"]),
        )
    ):
        graph.node.insert(place, node)


def rank_alone(graph: Any) -> None:
    """The most important tokens, however alike they are."""
    op = next(node for node in graph.node if node.op_type == OP_TYPE)
    [penalty] = [attribute for attribute in op.attribute if attribute.name == "penalty"]
    penalty.f = 0.0


def later_positions(inputs: StepInputs) -> StepInputs:
    """Every position is one further on."""
    return replace(inputs, position_ids=inputs.position_ids + 1)


def later_generated_positions(inputs: StepInputs) -> StepInputs:
    """Positions of generated tokens are one further on."""
    return later_positions(inputs) if inputs.input_ids.shape[1] == 1 else inputs


def second_calls_begin_anew(inputs: StepInputs) -> StepInputs:
    """A call that goes on from a cache counts from 0."""
    first = int(inputs.position_ids.min())
    return replace(inputs, position_ids=inputs.position_ids - first) if inputs.input_ids.shape[1] > 1 else inputs


def short_positions(inputs: StepInputs) -> StepInputs:
    """As if a table of positions ended early."""
    return replace(inputs, position_ids=np.minimum(inputs.position_ids, 199))


def forgetful(pipeline: Pipeline) -> Pipeline:
    """A prompt's second call sees nothing of the first one, whose rows stand in the cache all the same."""

    class Forgets(Tampered):
        def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
            if inputs.input_ids.shape[1] == 1 or not any(cache.lengths):
                return super().step(inputs, features, cache)
            assert isinstance(cache, OrtCache)
            blank = [_ort_value(np.zeros_like(_bits(value)), "float32") for value in cache.values]
            whole, cache.values, cache.binding = cache.values, blank, None
            output = super().step(inputs, features, cache)
            joined = [_joined(one, two) for one, two in zip(whole, cache.values, strict=True)]
            cache.values, cache.binding = joined, None
            return output

    return Pipeline(pipeline.manifest, pipeline.processor, Forgets(pipeline.session))


def _joined(before: Any, after: Any) -> Any:
    """The rows of one cache, then what another has beyond them."""
    first, both = _bits(before), _bits(after)
    return _ort_value(np.concatenate([first, both[:, :, first.shape[2] :]], 2), "float32")


def other_count(by: int) -> Callable[[StepInputs], StepInputs]:
    """So many tokens more are kept of a prompt from which some are dropped."""

    def change(inputs: StepInputs) -> StepInputs:
        pruned = inputs.num_kept < inputs.input_ids.shape[1]
        return replace(inputs, num_kept=inputs.num_kept + by) if pruned else inputs

    return change


def first_queries(inputs: StepInputs) -> StepInputs:
    """The prompt's first token scores, not the question."""
    return replace(inputs, query_index=np.zeros(1, np.int64))


class LosesRow(Tampered):
    """ONNX Runtime with a cache that loses the row of a token after the prompt.

    Args:
        session: an `OrtSession`.
        layers: where.
        row: which.
        drop: whether the rows behind it move up; else its numbers become 0.
    """

    def __init__(self, session: Any, layers: Sequence[int], row: int, drop: bool) -> None:
        super().__init__(session)
        self._layers, self._row, self._drop = layers, row, drop

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        output = super().step(inputs, features, cache)
        if inputs.input_ids.shape[1] > 1:
            assert isinstance(cache, OrtCache)
            cache.values, cache.binding = [self._without(value, i // 2) for i, value in enumerate(cache.values)], None
        return output

    def _without(self, value: Any, layer: int) -> Any:
        array = _bits(value).copy()
        if layer in self._layers:
            if self._drop:
                array = np.delete(array, self._row, axis=2)
            else:
                array[:, :, self._row] = 0
        return _ort_value(np.ascontiguousarray(array), "float32")


def manifest_changed(bundle: Path, **changes: Any) -> Path:
    """A bundle whose manifest says something else."""
    manifest = MANIFEST_JSON.read(bundle / MANIFEST, str(bundle))
    (bundle / MANIFEST).write_text(MANIFEST_JSON.to_text(replace(manifest, **changes)))
    return bundle

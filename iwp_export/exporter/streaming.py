"""Initializers that are read from a checkpoint when they are written, cast, and checked for values that got lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from iwp_export.errors import CheckpointError
from iwp_export.exporter.weights import StoredTensor

TILE = 256
"""Rows and columns of a tile that fit a core's cache; six times as fast as one copy at 11008 x 4096."""

WIDER = {"float16": "choose bfloat16 or float32", "bfloat16": "choose float32"}

NAMED = 3
"""How many tensors a refusal names."""


@dataclass
class Loss:
    """Values of one tensor: those that are NaN or infinite where they are stored, and those that became infinite."""

    dtype: str
    broken: int = 0
    too_large: int = 0
    largest: float = 0.0


@dataclass
class Losses:
    """What was lost of the tensors that were written so far."""

    tensors: dict[StoredTensor, Loss] = field(default_factory=dict)

    def cast(self, tensor: StoredTensor, block: npt.NDArray, dtype: np.dtype) -> npt.NDArray:
        """A block of a tensor in another element type; what is lost of it is counted, what becomes zero is not."""
        with np.errstate(over="ignore", invalid="ignore"):
            cast = block.astype(dtype, copy=False)
            if _is_finite(cast):
                return cast
            finite = np.isfinite(block)
            large = np.abs(block[finite & ~np.isfinite(cast)].astype(np.float64))
        loss = self.tensors.setdefault(tensor, Loss(dtype.name))
        loss.broken += int(np.count_nonzero(~finite))
        loss.too_large += large.size
        loss.largest = max(loss.largest, float(large.max(initial=0)))
        return cast

    def refuse(self) -> None:
        """Refuse what was written, if anything was lost.

        Raises:
            CheckpointError: weights are NaN or infinite, or do not fit the graph's element type.
        """
        broken = {tensor: loss.broken for tensor, loss in self.tensors.items() if loss.broken}
        if broken:
            raise CheckpointError(
                f"{sum(broken.values())} weights are NaN or infinite in {next(iter(broken)).file}: {_list(broken)}; "
                "no answer would be right, export a checkpoint without them"
            )
        large = {tensor: loss.too_large for tensor, loss in self.tensors.items() if loss.too_large}
        if large:
            dtype = next(iter(self.tensors.values())).dtype
            largest = max(loss.largest for loss in self.tensors.values())
            raise CheckpointError(
                f"{sum(large.values())} weights do not fit {dtype}, the largest is {largest:.4g}: {_list(large)}; "
                f"{WIDER.get(dtype, 'no wider type is supported')}",
                options=("dtype",),
            )


def streamed(
    name: str, tensor: StoredTensor, dtype: ir.DataType, losses: Losses, transpose: bool = False
) -> ir.LazyTensor:
    """An initializer that is read from the checkpoint, cast and transposed when it is written, and then forgotten.

    Args:
        name, dtype: the initializer's.
        tensor: where it lies.
        losses: where values are counted that the element type does not hold.
        transpose: swap the two axes of a matrix.
    """
    shape = tensor.shape[::-1] if transpose else tensor.shape

    def load() -> ir.Tensor:
        losses.tensors.pop(tensor, None)  # counted again where it is read once more
        array = np.empty(shape, dtype.numpy())
        target, copy = (array.T, copy_by_tiles) if transpose else (array, np.copyto)
        for place, block in tensor.blocks():
            copy(target[place], losses.cast(tensor, block, array.dtype))
        return ir.Tensor(array, name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name)


def copy_by_tiles(target: npt.NDArray, matrix: npt.NDArray) -> None:
    """Copy a matrix into one that lies the other way round in memory: a plain copy misses the cache at each step."""
    for row in range(0, matrix.shape[0], TILE):
        for column in range(0, matrix.shape[1], TILE):
            tile = np.s_[row : row + TILE, column : column + TILE]
            target[tile] = matrix[tile]


def _is_finite(array: npt.NDArray) -> bool:
    """Whether no value is NaN or infinite, which have infinity's bits: faster than `isfinite` of 16-bit numbers."""
    bits = f"u{array.itemsize}"
    infinity = np.array(np.inf, array.dtype).view(bits)
    return not bool(((array.view(bits) & infinity) == infinity).any())


def _list(counts: Mapping[StoredTensor, int]) -> str:
    """Tensors with their counts, the first few by name."""
    names = [f"{tensor.name} ({count})" for tensor, count in counts.items()]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def stream_weights(model: ir.Model, weights: Mapping[str, StoredTensor], losses: Losses) -> None:
    """Give initializers their values from a checkpoint, read when they are written.

    A matrix whose only uses are transposes, as a linear layer's is, becomes a transposed initializer: no runtime has
    to transpose (and hold twice) what the exporter can write the right way round. One with other uses, as a tied
    embedding, keeps its transpose, so that the file holds it once: runtimes fold that when they load. (A Gemm would
    read it as it lies, but ONNX Runtime's CPU then takes its float16 kernel, of half the speed and precision.)

    Args:
        model: changed in place.
        weights: where the value of each initializer lies, by the initializer's name.
        losses: as for `streamed`.
    """
    for name, value in list(model.graph.initializers.items()):
        if name not in weights or value.dtype is None:
            continue
        stored, dtype = weights[name], value.dtype
        value.const_value = streamed(name, stored, dtype, losses)
        transposes = [node for node in value.consumers() if _swaps_axes(node)]
        if not transposes or len(transposes) < len(value.uses()):
            continue
        turned = ir.Value(name=f"{name}.transposed", type=ir.TensorType(dtype), shape=ir.Shape(stored.shape[::-1]))
        turned.const_value = streamed(f"{name}.transposed", stored, dtype, losses, transpose=True)
        model.graph.register_initializer(turned)
        for node in transposes:
            node.outputs[0].replace_all_uses_with(turned)
            model.graph.remove(node, safe=True)
        del model.graph.initializers[name]


def rename_dimension(model: ir.Model, old: str, new: str) -> None:
    """Rename a symbolic dimension everywhere, also inside expressions such as `past_pruned + u0`."""
    for value in (*model.graph.inputs, *(v for node in model.graph.all_nodes() for v in node.outputs)):
        for axis, dim in enumerate(value.shape or ()):
            words = str(getattr(dim, "value", None) or "").split()
            if value.shape is not None and old in words:
                value.shape[axis] = " ".join(new if word == old else word for word in words)


def _swaps_axes(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
        return False
    return list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]

"""TensorRT and TensorRT-RTX behind the session interface, with caches that stay on the device.

Prompts run on one optimisation profile, decode steps on another if the engine has two. Each step writes a layer's keys
and values, old and new, into another block than it reads them from, since they are laid out head by head, and a cache
grows with every step: shapes and addresses are new each time. A captured CUDA graph could never be replayed, so none is
captured.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iwp_export.backends.session import STEP_TENSORS, Cache, Features, Floats, StepInputs, StepOutput
from iwp_export.backends.trt.device import Block, Device, Pool
from iwp_export.backends.trt.runner import Placed, Runner, Shape
from iwp_export.bundle.manifest import Manifest
from iwp_export.engine.profiles import EngineLimits
from iwp_export.errors import RequestError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
HOST_OUTPUTS: dict[str, Any] = {"logits": np.float32, "kept_index": np.int64}
SPARE_BLOCKS = 8
"""Free blocks kept beyond those of one cache: inputs, outputs and an image's features."""


@dataclass
class TrtFeatures:
    """One image's features [n, D] on the device."""

    address: int
    count: int
    nbytes: int


class TrtCache:
    """Keys and values on the device: key and value [1, Hkv, P_i, d] of layer 0, 1, ..."""

    def __init__(self, layers: int, token_bytes: int) -> None:
        self.blocks: list[Block] = []
        self.lengths: tuple[int, ...] = (0,) * layers
        self._token_bytes = token_bytes

    @property
    def nbytes(self) -> int:
        return 2 * sum(self.lengths) * self._token_bytes


class TrtSession:
    """A bundle's two engines.

    Args:
        manifest: the bundle's.
        limits: what the engines can hold.
        runners: `vision`, and the decoder's `prefill` and, if it has a profile for that, `decode`.
        device: where they run.
        provider: what to call this backend.
        owners: what must live as long as the runners do.
        after_first_decode: called once, when a prompt and a decode step have run.
    """

    def __init__(
        self,
        manifest: Manifest,
        limits: EngineLimits,
        runners: Mapping[str, Runner],
        device: Device,
        provider: str,
        owners: Sequence[object] = (),
        after_first_decode: Callable[[], None] | None = None,
    ) -> None:
        self.provider = provider
        self._after_first_decode = after_first_decode
        self._manifest, self._limits, self._device = manifest, limits, device
        self._runners = dict(runners)
        decoder = manifest.decoder
        self._item = ITEM_BYTES[decoder.dtype]
        self._token_bytes = decoder.kv_heads * decoder.head_dim * self._item
        self._past = [t.name for t in manifest.graphs["decoder"].inputs if t.name.startswith("past_key_values.")]
        self._pool = Pool(device, len(self._past) + SPARE_BLOCKS)
        self._scratch: dict[str, Block] = {}
        weakref.finalize(self, _give_all, self._pool, self._scratch)
        device.activate()
        self._no_image = Placed(self._scratch_block("no_image", self._row_bytes), (1, manifest.vision.feature_size))
        device.upload(self._no_image.address, np.zeros(self._row_bytes, np.uint8))
        device.synchronize()
        self._owners = owners  # after the runners, which are the first to go then

    @property
    def _row_bytes(self) -> int:
        return self._manifest.vision.feature_size * self._item

    def encode(self, pixel_values: Floats) -> Features:
        """See `Session.encode`."""
        self._device.activate()
        pixels = self._upload("pixel_values", np.ascontiguousarray(pixel_values, np.float32))
        blocks: list[Block] = []

        def place(name: str, shape: Shape) -> int:
            blocks.append(self._pool.take(shape[0] * self._row_bytes))
            return blocks[-1].address

        try:
            shapes = self._runners["vision"].run({"pixel_values": pixels}, {}, place)
            self._device.synchronize()
        except BaseException:
            self._pool.give(blocks)
            raise
        count = shapes["image_features"][0]
        features = TrtFeatures(blocks[0].address, count, count * self._row_bytes)
        self._pool.lend(features, blocks)
        return features

    def new_cache(self) -> Cache:
        """See `Session.new_cache`."""
        cache = TrtCache(self._manifest.decoder.layers, self._token_bytes)
        self._pool.lend(cache, cache.blocks)
        return cache

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        """See `Session.step`.

        Raises:
            RequestError: the call is beyond what the engine was built for.
        """
        if not isinstance(cache, TrtCache):
            raise TypeError(f"a cache of {type(cache).__name__} does not belong to TensorRT")
        tokens = inputs.input_ids.shape[1]
        self._check(tokens, features, cache)
        self._device.activate()
        decode = tokens == 1 and not features and min(cache.lengths) >= 1
        runner = self._runners["decode" if decode and "decode" in self._runners else "prefill"]
        placed = {name: self._upload(name, np.ascontiguousarray(getattr(inputs, name))) for name in STEP_TENSORS}
        placed["image_features"] = self._joined(features)
        placed.update(self._past_tensors(cache))
        num_kept = np.array([inputs.num_kept], np.int64)
        lengths = {}
        if "num_kept" in runner.host_inputs:
            lengths["num_kept"] = num_kept
        else:
            placed["num_kept"] = self._upload("num_kept", num_kept)
        output = self._execute(runner, placed, lengths, cache)
        if decode and self._after_first_decode is not None:
            self._after_first_decode()
            self._after_first_decode = None
        return output

    def _execute(
        self, runner: Runner, placed: Mapping[str, Placed], lengths: Mapping[str, Any], cache: TrtCache
    ) -> StepOutput:
        new: dict[str, Block] = {}
        addresses: dict[str, int] = {}

        def place(name: str, shape: Shape) -> int:
            count = int(np.prod(shape, dtype=np.int64))
            if name in HOST_OUTPUTS:
                addresses[name] = self._scratch_block(name, count * np.dtype(HOST_OUTPUTS[name]).itemsize)
                return addresses[name]
            new[name] = self._pool.take(count * self._item)
            return new[name].address

        try:
            shapes = runner.run(placed, lengths, place)
            results = {name: np.empty(shapes[name], dtype) for name, dtype in HOST_OUTPUTS.items()}
            for name, array in results.items():
                self._device.download(addresses[name], array)
            self._device.synchronize()
        except BaseException:
            self._pool.give(list(new.values()))
            raise
        present = [name.replace("past_key_values.", "present.") for name in self._past]
        self._pool.give(cache.blocks)
        cache.blocks.extend(new[name] for name in present)  # the list itself is what comes back when the cache is gone
        cache.lengths = tuple(shapes[name][2] for name in present[::2])
        return StepOutput(results["logits"].reshape(-1), results["kept_index"].reshape(-1))

    def _past_tensors(self, cache: TrtCache) -> dict[str, Placed]:
        decoder = self._manifest.decoder
        empty = self._no_image.address  # an address that is valid; nothing is read there
        return {
            name: Placed(
                cache.blocks[index].address if cache.blocks else empty,
                (1, decoder.kv_heads, cache.lengths[index // 2], decoder.head_dim),
            )
            for index, name in enumerate(self._past)
        }

    def _joined(self, features: Sequence[Features]) -> Placed:
        """The call's features as one tensor [N, D]; several images are joined on the device."""
        images = [image for image in features if isinstance(image, TrtFeatures)]
        size = self._manifest.vision.feature_size
        if not images:
            return self._no_image
        if len(images) == 1:
            return Placed(images[0].address, (images[0].count, size))
        address = self._scratch_block("image_features", sum(image.nbytes for image in images))
        offset = 0
        for image in images:
            self._device.copy(address + offset, image.address, image.nbytes)
            offset += image.nbytes
        return Placed(address, (sum(image.count for image in images), size))

    def _upload(self, name: str, array: np.ndarray[Any, Any]) -> Placed:
        address = self._scratch_block(name, array.nbytes)
        self._device.upload(address, array)
        return Placed(address, array.shape)

    def _scratch_block(self, name: str, nbytes: int) -> int:
        """Memory that one tensor keeps from call to call and that grows with it."""
        held = self._scratch.get(name)
        if held is None or held.nbytes < nbytes:
            if held is not None:
                self._pool.give([self._scratch.pop(name)])
            held = self._scratch[name] = self._pool.take(nbytes)
        return held.address

    def _check(self, tokens: int, features: Sequence[Features], cache: TrtCache) -> None:
        limits, per_image = self._limits, self._manifest.vision.tokens_per_image
        rows = sum(image.count for image in features)
        for what, wanted, most, option in (
            ("tokens in one call", tokens, limits.max_prompt, "--max-prompt"),
            ("tokens in all", max(cache.lengths) + tokens, limits.max_context, "--max-context"),
            ("visual tokens in one call", rows, limits.max_images * per_image, "--max-images"),
        ):
            if wanted > most:
                raise RequestError(
                    f"the request has {wanted} {what}, the engine takes {most}: "
                    f"shorten it, or build with a larger {option}"
                )


def _give_all(pool: Pool, scratch: dict[str, Block]) -> None:
    pool.give(list(scratch.values()))
    scratch.clear()

"""TensorRT and TensorRT-RTX behind the session interface, with caches that stay on the device.

Prompts run on one optimisation profile, decode steps on another if the engine has two. Each step writes all keys and
values, old and new, into another block than it reads them from, since they are laid out head by head, and a cache grows
with every step: shapes and addresses are new each time. A captured CUDA graph could never be replayed, so none is
captured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from iwp_export.backends.session import (
    CARRIERS,
    STEP_TENSORS,
    Array,
    Cache,
    CallLimits,
    Features,
    Floats,
    Inside,
    StepInputs,
    StepOutput,
    widened,
)
from iwp_export.backends.trt.device import Device
from iwp_export.backends.trt.runner import Block, Placed, Pool, Runner, Shape, offsets
from iwp_export.bundle.manifest import Manifest
from iwp_export.engine.profiles import EngineLimits
from iwp_export.errors import BackendError, RequestError

HOST_OUTPUTS: dict[str, Any] = {"logits": np.float32, "kept_index": np.int64}
SPARE_BLOCKS = 4
"""Free blocks kept: the two of an ended conversation's cache, and features of images."""


class TrtCache:
    """Keys and values on the device: key and value [1, Hkv, P_i, d] of layer 0, 1, ..., all in one block.

    `blocks` is that block, or empty like the cache; `addresses` are the tensors' in it.
    """

    def __init__(self, layers: int, token_bytes: int) -> None:
        self.blocks: list[Block] = []
        self.addresses: list[int] = []
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
        self.no_look = f"{provider} runs a compiled engine, which returns nothing of its layers"
        self._after_first_decode = after_first_decode
        self._manifest, self._limits, self._device = manifest, limits, device
        self.call_limits = CallLimits(limits.max_prompt, limits.max_images * manifest.vision.tokens.greatest)
        self._runners = dict(runners)
        decoder = manifest.decoder
        self._item = np.dtype(CARRIERS[decoder.dtype]).itemsize
        self._row_bytes = manifest.vision.feature_size * self._item
        self._token_bytes = decoder.kv_heads * decoder.head_dim * self._item
        self._past = [t.name for t in manifest.graphs["decoder"].inputs if t.name.startswith("past_key_values.")]
        self._pool = Pool(device, SPARE_BLOCKS)
        self._scratch: dict[str, list[Block]] = {}
        device.activate()
        self._no_image = Placed(self._scratch_block("no_image", self._row_bytes), (1, manifest.vision.feature_size))
        device.upload(self._no_image.address, np.zeros(self._row_bytes, np.uint8))
        device.synchronize()
        self._owners = owners  # declared after the runners: Python frees the runners first

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        self._device.activate()
        placed = {name: self._upload(name, np.ascontiguousarray(array)) for name, array in inputs.items()}
        blocks: list[Block] = []

        def place(shapes: Mapping[str, Shape]) -> dict[str, int]:
            blocks.append(self._pool.take(shapes["image_features"][0] * self._row_bytes))
            return {"image_features": blocks[-1].address}

        try:
            shapes = self._runners["vision"].run(placed, {}, place)
            self._device.synchronize()
        except BaseException:
            self._pool.give(blocks)
            raise
        features = Placed(blocks[0].address, shapes["image_features"])
        self._pool.lend(features, blocks)
        return features

    def new_cache(self) -> Cache:
        cache = TrtCache(self._manifest.decoder.layers, self._token_bytes)
        self._pool.lend(cache, cache.blocks)
        return cache

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        assert isinstance(cache, TrtCache)
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

    def read_features(self, features: Features) -> Floats:
        assert isinstance(features, Placed)
        return self._download(features.address, features.shape)

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        assert isinstance(cache, TrtCache)
        decoder = self._manifest.decoder
        shape = (decoder.kv_heads, cache.lengths[layer], decoder.head_dim)
        if not cache.blocks:
            return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        key, value = (self._download(address, shape) for address in cache.addresses[2 * layer : 2 * layer + 2])
        return key, value

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        raise BackendError(self.no_look)

    def _download(self, address: int, shape: Shape) -> Floats:
        self._device.activate()
        array = np.empty(shape, CARRIERS[self._manifest.decoder.dtype])
        self._device.download(address, array)
        self._device.synchronize()
        return widened(array)

    def _execute(
        self, runner: Runner, placed: Mapping[str, Placed], lengths: Mapping[str, Any], cache: TrtCache
    ) -> StepOutput:
        present = [name.replace("past_key_values.", "present.") for name in self._past]
        blocks: list[Block] = []
        addresses: dict[str, int] = {}

        def place(shapes: Mapping[str, Shape]) -> dict[str, int]:
            for name, dtype in HOST_OUTPUTS.items():
                addresses[name] = self._scratch_block(name, math.prod(shapes[name]) * np.dtype(dtype).itemsize)
            starts, size = offsets([math.prod(shapes[name]) * self._item for name in present])
            blocks.append(self._pool.take(size))
            addresses.update((name, blocks[0].address + start) for name, start in zip(present, starts, strict=True))
            return addresses

        try:
            shapes = runner.run(placed, lengths, place)
            results = {name: np.empty(shapes[name], dtype) for name, dtype in HOST_OUTPUTS.items()}
            for name, array in results.items():
                self._device.download(addresses[name], array)
            self._device.synchronize()
        except BaseException:
            self._pool.give(blocks)
            raise
        self._pool.give(cache.blocks)
        cache.blocks += blocks  # the list itself is what comes back when the cache is gone
        cache.addresses = [addresses[name] for name in present]
        cache.lengths = tuple(shapes[name][2] for name in present[::2])
        return StepOutput(results["logits"].reshape(-1), results["kept_index"].reshape(-1))

    def _past_tensors(self, cache: TrtCache) -> dict[str, Placed]:
        decoder = self._manifest.decoder
        empty = self._no_image.address  # an address that is valid; nothing is read there
        return {
            name: Placed(
                cache.addresses[index] if cache.blocks else empty,
                (1, decoder.kv_heads, cache.lengths[index // 2], decoder.head_dim),
            )
            for index, name in enumerate(self._past)
        }

    def _joined(self, features: Sequence[Features]) -> Placed:
        """The call's features as one tensor [N, D]; several images are joined on the device."""
        images = [image for image in features if isinstance(image, Placed)]
        if len(images) < 2:
            return images[0] if images else self._no_image
        rows = sum(image.count for image in images)
        address = end = self._scratch_block("image_features", rows * self._row_bytes)
        for image in images:
            self._device.copy(end, image.address, image.count * self._row_bytes)
            end += image.count * self._row_bytes
        return Placed(address, (rows, self._manifest.vision.feature_size))

    def _upload(self, name: str, array: np.ndarray[Any, Any]) -> Placed:
        address = self._scratch_block(name, array.nbytes)
        self._device.upload(address, array)
        return Placed(address, array.shape)

    def _scratch_block(self, name: str, nbytes: int) -> int:
        """Memory that one tensor keeps from call to call and that grows with it."""
        if name not in self._scratch:
            self._scratch[name] = []
            self._pool.lend(self, self._scratch[name])
        held = self._scratch[name]
        if not held or held[0].nbytes < nbytes:
            self._pool.give(held)
            held.append(self._pool.take(nbytes))
        return held[0].address

    def _check(self, tokens: int, features: Sequence[Features], cache: TrtCache) -> None:
        rows = sum(image.count for image in features)
        for what, wanted, most, option in (
            ("tokens in one call", tokens, self.call_limits.tokens, "max_prompt"),
            ("tokens in all", max(cache.lengths) + tokens, self._limits.max_context, "max_context"),
            ("visual tokens in one call", rows, self.call_limits.visual_tokens, "max_images"),
        ):
            if wanted > most:
                raise RequestError(
                    f"the request has {wanted} {what}, the engine takes {most}: "
                    f"shorten it, or build with a larger {option}"
                )

"""A family of models: an image as it sees it, its vision graph, and where its decoder differs from Llama's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor


Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class View:
    """A rectangle of pixels and the visual tokens that stand for its cells, for drawing.

    Attributes:
        seen: uint8 [h, w, 3], the pixels as the model saw them.
        tokens: int64 [rows, columns], index of the picture's visual token of each cell.
    """

    seen: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Picture:
    """A preprocessed image.

    Attributes:
        inputs: the vision graph's inputs for this image, by name.
        num_tokens: visual tokens that the graph makes of it.
        views: what the model saw; tokens that stand for no place, such as line ends, are in no view.
    """

    inputs: Mapping[str, Array]
    num_tokens: int
    views: tuple[View, ...]

    @cached_property
    def digest(self) -> bytes:
        """A hash of the inputs: pictures with equal digests have equal features."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.inputs.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Colours:
    """How an image processor normalises: it subtracts `mean` and divides by `std`, per channel."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def seen(self, pixels: Array) -> npt.NDArray[np.uint8]:
        """The image uint8 [h, w, 3] behind normalised pixels [3, h, w]."""
        colours = pixels.transpose(1, 2, 0) * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class VisionGraph:
    """A family's vision graph, ready to be traced.

    Attributes:
        module: a torch module whose inputs are those of `inputs` by keyword and whose output is [N, D].
        inputs: example tensors by name.
        dims: names of the dimensions that differ between images, by input and axis; `VisionInfo.dims` bounds them.
    """

    module: Any
    inputs: Mapping[str, Any]
    dims: Mapping[str, Mapping[int, str]]


class Family:
    """What is particular to a family. Its file, named by `model_type`, defines a subclass and `FAMILY`, an instance.

    `model` is the transformers model and `config` its configuration. Methods that take them are for the export and may
    import torch; the others run on a robot and need numpy alone.
    """

    decoders: tuple[str, ...] = ("llama", "mistral", "qwen2")
    """Language models (their `model_type`) that the decoder's parts below run."""

    config_rows: Mapping[str, tuple[Any, ...]] = {}
    """What config.json must hold beside the language model: names with the fields of `config_schema.Row`."""

    # The vision graph, for the export.

    def vision_info(self, config: Any) -> VisionInfo:
        """What the host needs to know about images.

        Raises:
            CheckpointError: a configuration that this family does not support.
        """
        raise NotImplementedError

    def vision_graph(self, model: Any) -> VisionGraph:
        """From a picture's inputs to its features; traced on fake tensors, without control flow on values."""
        raise NotImplementedError

    # The decoder, for the export: the parts in which families differ, each with Llama's as default.

    def language_model(self, model: Any) -> Any:
        """The decoder's module with embed_tokens, layers, norm and rotary_emb."""
        return model.model.language_model

    def prunable_layers(self, config: Any) -> range:
        """Layers at whose input visual tokens may be dropped."""
        return range(config.text_config.num_hidden_layers)

    def require_layer(self, config: Any, layer: int, name: str = "the model", whose: str = "") -> None:
        """Refuse a layer at whose input visual tokens may not be dropped.

        Args:
            name, whose: for the error: the model's name, and who asks for the layer (`the recipe's `, say).

        Raises:
            SettingsError: it is not one of `prunable_layers`.
        """
        layers = self.prunable_layers(config)
        if layer not in layers:
            raise SettingsError(
                f"{name} cannot be pruned at {whose}layer {layer}; choose layer {layers[0]} to {layers[-1]}",
                options=("layer",),
            )

    def embed(self, language_model: Any, input_ids: Tensor, image_features: Tensor, feature_index: Tensor) -> Tensor:
        """Word embeddings [1, S, D] with the image features [N, D] in the places of the visual tokens."""
        import torch

        visual = feature_index >= 0
        features = image_features[feature_index.clamp(min=0)]
        words = language_model.embed_tokens(input_ids.masked_fill(visual, 0))  # a visual token's id may lie beyond them
        return torch.where(visual[..., None], features, words)

    def rotary(self, language_model: Any, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [1, S, d / 2] of the positions [1, S], or [3, 1, S] with M-RoPE.

        transformers repeats each half, the ONNX operator takes one.
        """
        cos, sin = language_model.rotary_emb(hidden, position_ids)
        half = cos.shape[-1] // 2
        return cos[..., :half], sin[..., :half]

    def project(self, attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [1, H, S, d], keys and values [1, Hkv, S, d] before RoPE, of the normalised input [1, S, D]."""
        shape = (*hidden.shape[:-1], -1, attention.head_dim)
        query, key, value = (
            projection(hidden).view(shape).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return query, key, value

    def mask(self, new: int, past: int, like: Tensor) -> Tensor:
        """bool [1, 1, new, past + new]: a token sees the whole cache and this call's tokens up to itself."""
        import torch

        position = torch.arange(past, past + new, device=like.device)
        return (torch.arange(past + new, device=like.device) <= position[:, None])[None, None]

    def after_layer(self, index: int, hidden: Tensor, image_features: Tensor, feature_index: Tensor) -> Tensor:
        """What is added to the output [1, K, D] of layer `index`; `feature_index` is of the tokens that are left."""
        return hidden

    def head(self, model: Any) -> Any:
        """The module that projects to the vocabulary."""
        return model.lm_head

    def logits(self, head: Any, hidden: Tensor) -> Tensor:
        """Logits [1, S, V] of the outputs [1, S, D] after the final norm."""
        return head(hidden)

    # Pictures and positions, for the run: numpy alone.

    def check_processor(self, images: Any, vision: VisionInfo) -> None:
        """Refuse with a `BundleError` an image processor that is not the model's in what no single picture shows."""

    def picture(self, outputs: Mapping[str, Array], vision: VisionInfo, colours: Colours) -> Picture:
        """A picture from what the image processor returned for one image.

        Args:
            outputs: arrays by name, with a batch of one image.
            vision: the bundle's.
            colours: how the processor normalised.

        Raises:
            RequestError: the arrays do not fit the model.
        """
        raise NotImplementedError

    def positions(
        self, visual: npt.NDArray[np.bool_], pictures: Sequence[Picture], start: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Positions of a call's tokens, and the one at which the conversation goes on.

        Args:
            visual: bool [S], true at visual tokens.
            pictures: the call's, in the order of their tokens.
            start: the first position.

        Returns:
            int64 [1, S], or [3, 1, S] with M-RoPE, and the next position.
        """
        return np.arange(start, start + visual.size, dtype=np.int64)[None], start + visual.size

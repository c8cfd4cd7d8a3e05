"""The manifest of a bundle: what is in it, how its graphs are called, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, get_type_hints

from iwp_export.errors import BundleError, SettingsError
from iwp_export.pruning.settings import PruningSettings

FORMAT = "iwp-bundle"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: numpy dtype name and shape, with names for the dimensions a request decides."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """An ONNX graph of the bundle; `file` and `weights` are names inside the bundle's folder."""

    file: str
    weights: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ModelInfo:
    """The checkpoint that was exported."""

    name: str
    source: str
    model_type: str
    architecture: str
    revision: str | None = None


@dataclass(frozen=True)
class Bounds:
    """Least, typical and greatest value of a size."""

    least: int
    typical: int
    greatest: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.typical <= self.greatest:
            raise ValueError(f"bounds must rise from 0 or more, got {self}")

    @classmethod
    def fixed(cls, value: int) -> Bounds:
        """A size that never changes."""
        return cls(value, value, value)

    def __str__(self) -> str:
        if self.least == self.greatest:
            return str(self.least)
        return f"{self.least} to {self.greatest}, typically {self.typical}"


@dataclass(frozen=True)
class VisionInfo:
    """What the host needs to know about images.

    Attributes:
        image_token_id: the token of a visual token's place in the prompt.
        feature_size: length of a visual token's feature.
        tokens: how many visual tokens an image becomes.
        dims: bounds of the vision graph's named dimensions, for one image.
        geometry: what the family needs to make the graph's inputs of an image; plain JSON.
    """

    image_token_id: int
    feature_size: int
    tokens: Bounds
    dims: Mapping[str, Bounds]
    geometry: Mapping[str, Any]


@dataclass(frozen=True)
class DecoderInfo:
    """The language model; layers below `pruning.layer` cache the full prompt, the others the pruned one."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    def cache_bytes(self, lengths: list[int]) -> int:
        """Bytes of the key/value cache when layer i holds `lengths[i]` tokens."""
        item = {"float32": 4, "float16": 2, "bfloat16": 2}[self.dtype]
        return sum(lengths) * 2 * self.kv_heads * self.head_dim * item


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader of the bundle may rely on; `files` covers every file but the manifest itself.

    `graphs` holds `decoder` and `vision`. `processor` names the folder with the tokenizer, image processor and
    chat template. `tools` are the versions that made the bundle.
    """

    model: ModelInfo
    pruning: PruningSettings
    decoder: DecoderInfo
    vision: VisionInfo
    graphs: Mapping[str, GraphSpec]
    processor: str = "processor"
    tools: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON values, with `format` and `schema_version` first."""
        body = asdict(self)
        body["pruning"] = self.pruning.to_dict()
        return {"format": FORMAT, "schema_version": SCHEMA_VERSION, **body}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Manifest:
        """Read a manifest's JSON.

        Args:
            data: the parsed JSON.
            where: what to call the bundle in an error.

        Raises:
            BundleError: not a bundle's manifest, written by a newer version, or damaged.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(f"{where} is not an iwp-export bundle: its manifest.json has no format {FORMAT!r}")
        version = data.get("schema_version")
        if not isinstance(version, int) or version < 1:
            raise BundleError(f"{where} is damaged: its manifest has schema version {version!r}; export it again")
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema version {version}, this version reads up to {SCHEMA_VERSION}: upgrade iwp-export"
            )
        try:
            return cls(
                model=_build(ModelInfo, data["model"]),
                pruning=PruningSettings.from_dict(data["pruning"]),
                decoder=_build(
                    DecoderInfo, {**data["decoder"], "eos_token_ids": tuple(map(int, data["decoder"]["eos_token_ids"]))}
                ),
                vision=_vision(data["vision"]),
                graphs={name: _graph(graph) for name, graph in data["graphs"].items()},
                processor=data["processor"],
                tools=dict(data["tools"]),
                files={name: _build(FileEntry, entry) for name, entry in data["files"].items()},
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, SettingsError) as error:
            raise BundleError(
                f"{where} is damaged: its manifest lacks or misspells {error}; export it again"
            ) from error


Fields = TypeVar("Fields")


def _build(kind: type[Fields], data: Mapping[str, Any]) -> Fields:
    """A dataclass from JSON values, whose plain fields must have their declared types.

    Raises:
        TypeError: a field is missing, unknown or of another type.
    """
    for name, hint in get_type_hints(kind).items():
        plain = hint if isinstance(hint, type) else None
        if plain in (str, int) and type(data.get(name)) is not plain:
            raise TypeError(f"{name} = {data.get(name)!r}")
    return kind(**data)


def _vision(data: dict[str, Any]) -> VisionInfo:
    dims = {name: _build(Bounds, bounds) for name, bounds in data["dims"].items()}
    return _build(VisionInfo, {**data, "tokens": _build(Bounds, data["tokens"]), "dims": dims})


def _graph(data: dict[str, Any]) -> GraphSpec:
    specs = {
        side: tuple(_build(TensorSpec, {**t, "shape": tuple(t["shape"])}) for t in data[side])
        for side in ("inputs", "outputs")
    }
    return _build(GraphSpec, {**data, **specs})

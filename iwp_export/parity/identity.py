"""What tells whether two artefacts are of one checkpoint and one choice of settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from iwp_export.bundle.manifest import DecoderInfo, GenerationInfo, Manifest, ModelInfo, VisionInfo
from iwp_export.bundle.recipe import SHOWN_DIGITS, Settings
from iwp_export.bundle.schema import to_json


@dataclass(frozen=True)
class Identity:
    """What of a manifest must be the same for two artefacts to give the same answers."""

    model: ModelInfo
    pruning: Settings
    decoder: DecoderInfo
    vision: VisionInfo
    generation: GenerationInfo

    @classmethod
    def of(cls, manifest: Manifest, digest: str | None = None) -> Identity:
        """Of an artefact, or of a checkpoint: its digest and the manifest that an export of it would have."""
        model = manifest.model if digest is None else replace(manifest.model, digest=digest)
        return cls(model, manifest.pruning, manifest.decoder, manifest.vision, manifest.generation)

    def __str__(self) -> str:
        digest = f", digest {self.model.digest[:SHOWN_DIGITS]}" if self.model.digest else ""
        return f"{self.model.name} ({self.model.model_type}{digest})"

    def of_another_model(self, other: Identity) -> bool:
        """Whether this cannot be of the other's checkpoint."""
        ours, theirs = self.model, other.model
        known = ours.digest is not None and theirs.digest is not None
        return ours.model_type != theirs.model_type or (known and ours.digest != theirs.digest)

    def differences(self, other: Identity) -> list[str]:
        """What of this differs from the other's, as `field: ours, not theirs`.

        The keep ratio of the settings is only a default, an engine bounds the positions, and element types are
        compared by their rounding.
        """
        return list(self._differences(other))

    def _differences(self, other: Identity) -> Iterator[str]:
        if self.model.digest and other.model.digest and self.model.digest != other.model.digest:
            yield f"checkpoint: digest {self.model.digest[:SHOWN_DIGITS]}, not {other.model.digest[:SHOWN_DIGITS]}"
        if self.model.model_type != other.model.model_type:
            yield f"model_type: {self.model.model_type}, not {other.model.model_type}"
        for part, free in (
            ("pruning", ("keep",)),
            ("decoder", ("max_positions", "dtype")),
            ("vision", ()),
            ("generation", ()),
        ):
            ours, theirs = getattr(self, part), getattr(other, part)
            for field in fields(ours):
                a, b = getattr(ours, field.name), getattr(theirs, field.name)
                if field.name not in free and to_json(a) != to_json(b):
                    yield f"{part}.{field.name}: {_short(a)}, not {_short(b)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

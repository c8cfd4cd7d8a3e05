"""A built engine on disk: NAME.plan, NAME.vision.plan, NAME.processor and last, NAME.json that vouches for them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iwp_export.bundle.manifest import FileEntry, Manifest
from iwp_export.bundle.store import QUICK_HASH_LIMIT, READ_SIZE, Verify
from iwp_export.device.gpu import Gpu
from iwp_export.engine.flavour import MODULES, TITLES, Flavour
from iwp_export.engine.profiles import EngineLimits
from iwp_export.engine.target import FlavourName
from iwp_export.errors import BackendError, BundleError, OutputError

FORMAT = "iwp-plan"
SCHEMA_VERSION = 1
SUFFIX = ".plan"

RTX_SMS = ("75", "80", "86", "89", "120", "121")
"""Architectures that TensorRT-RTX 1.7 compiles for; a message for another one names the other way."""


@dataclass(frozen=True)
class Fingerprint:
    """What an engine needs to be loaded; all of it must match.

    Attributes:
        flavour, version: the TensorRT that built it.
        sms: architectures that it holds code for, such as `86`.
        plugin_version: version of the pruning plugin.
    """

    flavour: FlavourName
    version: str
    sms: tuple[str, ...]
    plugin_version: str


@dataclass(frozen=True)
class EngineInfo:
    """The content of NAME.json.

    Attributes:
        fingerprint: what the engine needs.
        limits: what it can hold.
        profiles: optimisation profiles of the language model; with 2 the second is for decode steps.
        keep: keep ratio that its kernels were chosen for.
        source: the arguments of `iwp-export` that name what it was made from, such as `build my.bundle`.
        manifest: the bundle's.
        files: size and hash of each file beside NAME.json, by name.
    """

    fingerprint: Fingerprint
    limits: EngineLimits
    profiles: int
    keep: float
    source: str
    manifest: Manifest
    files: Mapping[str, FileEntry]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with `format` and `schema_version` first."""
        body = {
            "fingerprint": asdict(self.fingerprint),
            "limits": asdict(self.limits),
            "profiles": self.profiles,
            "keep": self.keep,
            "source": self.source,
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "manifest": self.manifest.to_dict(),
        }
        return {"format": FORMAT, "schema_version": SCHEMA_VERSION, **body}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> EngineInfo:
        """Inverse of `to_dict`.

        Raises:
            BundleError: the JSON is something else, newer, or damaged.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(f"{where} does not describe an engine: it has no format {FORMAT!r}")
        version = data.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema version {version}, this version reads {SCHEMA_VERSION}: upgrade iwp-export"
            )
        try:
            fingerprint = data["fingerprint"]
            if fingerprint["flavour"] not in MODULES:
                raise ValueError(f"flavour {fingerprint['flavour']!r}")
            return cls(
                Fingerprint(**{**fingerprint, "sms": tuple(map(str, fingerprint["sms"]))}),
                EngineLimits(**data["limits"]),
                int(data["profiles"]),
                float(data["keep"]),
                str(data["source"]),
                Manifest.from_dict(data["manifest"], where),
                {name: FileEntry(**entry) for name, entry in data["files"].items()},
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{where} is damaged: it lacks or misspells {error}; build the engine again") from error


@dataclass(frozen=True)
class EnginePaths:
    """The paths of one engine, from that of its decoder."""

    decoder: Path

    @classmethod
    def of(cls, path: Path | str) -> EnginePaths:
        """Paths for NAME.plan.

        Raises:
            OutputError: the name does not end in .plan, or is the vision tower's.
        """
        path = Path(path)
        if path.suffix != SUFFIX or path.name == SUFFIX:
            raise OutputError(f"an engine's name ends in {SUFFIX}, got {path}")
        if path.stem.endswith(".vision"):
            name = path.stem.removesuffix(".vision") + SUFFIX
            raise OutputError(f"{path.name} is a vision tower's name; name the engine itself, {name}")
        return cls(path)

    @property
    def vision(self) -> Path:
        return self._beside(f".vision{SUFFIX}")

    @property
    def processor(self) -> Path:
        return self._beside(".processor")

    @property
    def info(self) -> Path:
        return self._beside(".json")

    def _beside(self, ending: str) -> Path:
        return self.decoder.with_name(self.decoder.stem + ending)

    @property
    def all(self) -> tuple[Path, ...]:
        """In the order in which they are moved into place: what vouches for the others comes last."""
        return self.processor, self.vision, self.decoder, self.info


def read_engine(path: Path | str, verify: Verify = "quick") -> tuple[EnginePaths, EngineInfo]:
    """Read NAME.json beside NAME.plan and check the files against it.

    Args:
        path: NAME.plan.
        verify: `quick` hashes files up to 64 MiB and checks the sizes of larger ones; `full` hashes all.

    Raises:
        BundleError: something is missing, changed or unreadable.
    """
    try:
        paths = EnginePaths.of(path)
    except OutputError as error:
        raise BundleError(str(error)) from error
    if not paths.decoder.is_file():
        raise BundleError(f"{paths.decoder} does not exist")
    if not paths.info.is_file():
        raise BundleError(
            f"{paths.decoder} has no {paths.info.name} beside it, which says what the engine needs: "
            "copy it with the engine, or build the engine again"
        )
    try:
        data = json.loads(paths.info.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{paths.info} cannot be read ({error}); build the engine again") from error
    info = EngineInfo.from_dict(data, str(paths.info))
    for name, entry in info.files.items():
        file = paths.decoder.parent / name
        if not file.is_file():
            raise BundleError(f"{paths.decoder} is incomplete: {name} is missing; copy it, or build the engine again")
        size = file.stat().st_size
        small = size <= QUICK_HASH_LIMIT
        if size != entry.bytes or ((small or verify == "full") and hash_file(file).sha256 != entry.sha256):
            raise BundleError(f"{file} is not the file that was built: copy it, or build the engine again")
    if missing := {paths.decoder.name, paths.vision.name} - info.files.keys():
        raise BundleError(f"{paths.info} does not vouch for {sorted(missing)[0]}: it belongs to another engine")
    return paths, info


def check_fingerprint(paths: EnginePaths, info: EngineInfo, flavour: Flavour, gpu: Gpu, plugin_version: str) -> None:
    """Refuse an engine that this machine cannot load, before TensorRT is asked.

    Raises:
        BackendError: it was built by another version or for another GPU; the message has the command that rebuilds it.
    """
    wanted = info.fingerprint
    problem = ""
    if wanted.version != flavour.version:
        problem = f"was built by {TITLES[wanted.flavour]} {wanted.version}, {flavour.version} is installed here"
    elif gpu.sm not in wanted.sms:
        problem = f"was built for SM {', '.join(wanted.sms)}, {gpu.name} is SM {gpu.sm}"
    elif wanted.plugin_version != plugin_version:
        problem = f"needs version {wanted.plugin_version} of the pruning plugin, this is {plugin_version}"
    if problem:
        command = rebuild_command(paths, info, gpu)
        raise BackendError(f"{paths.decoder} {problem}: engines are not portable. Build it again with: {command}")


def rebuild_command(paths: EnginePaths, info: EngineInfo, gpu: Gpu) -> str:
    """The command that builds the engine again, for the GPU that is here."""
    rtx = info.fingerprint.flavour == "rtx" and gpu.sm in RTX_SMS
    target = f"--target rtx --sm {gpu.sm}" if rtx else "--target tensorrt"
    limits = info.limits
    sizes = f"--max-context {limits.max_context} --max-prompt {limits.max_prompt} --max-images {limits.max_images}"
    if info.profiles != (1 if rtx else 2):
        sizes += f" --profiles {info.profiles}"
    return f"iwp-export {info.source} -o {shlex.quote(str(paths.decoder))} {target} {sizes} --force"


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(READ_SIZE):
            digest.update(block)
            size += len(block)
    return FileEntry(size, digest.hexdigest())

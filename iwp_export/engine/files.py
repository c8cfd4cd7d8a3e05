"""A built engine on disk: NAME.plan, NAME.vision.plan, NAME.processor, and NAME.json, which describes them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from iwp_export.bundle.document import Document
from iwp_export.bundle.manifest import FileEntry, FileName, Manifest
from iwp_export.bundle.outputs import ENGINE_FORMAT, artefact_around, inside
from iwp_export.bundle.schema import Flaw, Rule, above_zero, between
from iwp_export.bundle.staging import Staging, move_into_place
from iwp_export.bundle.verify import Verify, check_files, check_no_code, foreign_entry, hash_files, plain_files
from iwp_export.device.gpu import Gpu
from iwp_export.engine.flavour import TITLES, Flavour, FlavourName
from iwp_export.engine.profiles import EngineLimits
from iwp_export.errors import BackendError, BundleError, OutputError, os_reason

SUFFIX = ".plan"
ROLES = ("decoder", "vision")
"""The graphs of a bundle, each with a file of its own in an engine."""

RTX_SMS = ("75", "80", "86", "89", "120", "121")
"""Architectures that TensorRT-RTX 1.7 compiles for; a message for another one names the other way."""


def _is_command_line(text: str) -> bool:
    try:
        return shlex.split(text) != []
    except ValueError:
        return False


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
    sms: tuple[Annotated[str, Rule(str.isdecimal, "digits")], ...]
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
    profiles: Annotated[int, between(1, 2)]
    keep: Annotated[float, above_zero(1)]
    source: Annotated[str, Rule(_is_command_line, "words as a shell splits them")]
    manifest: Manifest
    files: Mapping[FileName, FileEntry]

    def to_dict(self) -> dict[str, Any]:
        """The content of NAME.json: `format`, `schema_version` and `digest`, then the fields."""
        return ENGINE_JSON.to_dict(self)


@dataclass(frozen=True)
class EnginePaths:
    """The paths of one engine, from that of its decoder."""

    decoder: Path

    @classmethod
    def of(cls, path: Path | str) -> EnginePaths:
        """Paths for NAME.plan.

        Raises:
            OutputError: the name does not end in .plan, or is that of a graph beside NAME.plan.
        """
        path = Path(path)
        if path.suffix != SUFFIX or path.name == SUFFIX:
            raise OutputError(f"an engine's name ends in {SUFFIX}, got {path}")
        for role in ROLES[1:]:
            if path.stem.endswith(f".{role}"):
                name = path.stem.removesuffix(f".{role}") + SUFFIX
                raise OutputError(f"{path.name} is an engine's {role} graph; name the engine itself, {name}")
        return cls(path)

    def graph(self, role: str) -> Path:
        """The file of one of the bundle's graphs: NAME.plan for the decoder, NAME.ROLE.plan for the others."""
        return self.decoder if role == ROLES[0] else self._beside(f".{role}{SUFFIX}")

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
        """In the order in which they are moved into place: the description of the others comes last."""
        return self.processor, *(self.graph(role) for role in reversed(ROLES)), self.info

    @property
    def roots(self) -> tuple[str, ...]:
        """Names of what NAME.json lists, files and folders."""
        return tuple(path.name for path in self.all if path != self.info)

    def check_listed(self, names: Collection[str]) -> None:
        """Refuse a list of files that lacks a part of this engine.

        Raises:
            Flaw: it does.
        """
        if missing := {self.graph(role).name for role in ROLES} - set(names):
            raise Flaw(f"{self.info.name} does not list {min(missing)}, it is another engine's")
        if not any(name.startswith(f"{self.processor.name}/") for name in names):
            raise Flaw(f"{self.info.name} lists nothing in {self.processor.name}")


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
    folder = paths.decoder.parent
    try:
        info = ENGINE_JSON.read(paths.info, str(paths.info))
        paths.check_listed(info.files)
        present = [name for name in plain_files(folder, (paths.info.name, *paths.roots)) if name != paths.info.name]
        check_files(folder, present, info.files, verify, "Verifying the engine")
        check_no_code(folder, info.files)
    except Flaw as flaw:
        raise BundleError(f"{paths.decoder} is damaged: {flaw}. Copy it again, or build the engine again") from flaw
    except OSError as error:
        raise BundleError(f"{paths.decoder} cannot be read: {error.strerror or error} ({error.filename})") from error
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
    rtx, limits = info.fingerprint.flavour == "rtx" and gpu.sm in RTX_SMS, info.limits
    target = ["--target", "rtx", "--sm", gpu.sm] if rtx else ["--target", "tensorrt"]
    sizes = [word for name, most in vars(limits).items() for word in (f"--{name.replace('_', '-')}", str(most))]
    if info.profiles != (1 if rtx else 2):
        sizes += ["--profiles", str(info.profiles)]
    return shlex.join(["iwp-export", *shlex.split(info.source), "-o", str(paths.decoder), *target, *sizes, "--force"])


ENGINE_JSON = Document(
    EngineInfo,
    ENGINE_FORMAT,
    foreign="does not describe an engine: it",
    remedy="copy it with the engine, or build the engine again",
    command=lambda data, where: "build the engine again",
)


REPLACED = "replaced.json"
"""Name in the staging folder of the NAME.json that an engine had which is being replaced."""


class EngineWriter(Staging):
    """Context manager that collects an engine's files in a folder beside their target and moves them at the end.

    Args:
        path: NAME.plan; missing parents are made.
        force: replace an engine that is there already.

    Raises:
        OutputError: something is there and `force` is off, or it is not an engine's.
    """

    def __init__(self, path: Path | str, force: bool = False) -> None:
        self.paths = EnginePaths.of(path)
        self._force = force
        super().__init__(self.paths.decoder, self.paths.decoder)
        self._half_moved = self._listed_aside()
        self._check_target()

    def staged(self, path: Path) -> Path:
        """Where to write what will be `path`, one of `paths`."""
        return self.folder / path.name

    def commit(self, info: EngineInfo) -> EngineInfo:
        """Hash what was staged, and move it into place; NAME.json goes first if it is there, and comes last.

        Returns:
            The information as written, with its files.

        Raises:
            OutputError: `read_engine` would refuse the engine, the target changed meanwhile, or the disk is full.
        """
        try:
            names = plain_files(self.folder, self.paths.roots)
            info = replace(info, files=hash_files(self.folder, names, "Hashing the engine", sync=True))
            text = ENGINE_JSON.to_text(info)
            self.paths.check_listed(names)
            check_no_code(self.folder, names)
            self.seal(self.paths.info.name, text, names)
            self._check_target()
            old = [(self.paths.info, self.folder / REPLACED)] if self.paths.info.exists() else []
            move_into_place([*old, *((self.staged(path), path) for path in self.paths.all)])
        except Flaw as flaw:
            raise OutputError(f"Cannot write {self.paths.decoder}: {flaw}") from flaw
        except OSError as error:
            raise OutputError(f"Cannot write {self.paths.decoder}: {os_reason(error)}") from error
        return info

    def _check_target(self) -> None:
        around = artefact_around(self.paths.decoder)
        if around is not None and around.name != self.paths.decoder.name:
            raise OutputError(f"Cannot write {self.paths.decoder}: {inside(around)}", options=("output",))
        if link := next((path for path in self.paths.all if path.is_symlink()), None):
            raise OutputError(
                f"Cannot write {self.paths.decoder}: {link} is a link. Choose another output", options=("output",)
            )
        existing = [path for path in self.paths.all if path.exists()]
        if existing and not self._force:
            raise OutputError(
                f"Cannot write {self.paths.decoder}: {existing[0]} exists. Replace it or choose another output",
                options=("force", "output"),
            )
        known = ENGINE_JSON.listed_files(self.paths.info) or set()
        known |= {self.paths.info.name} if known else self._half_moved
        folder = self.paths.decoder.parent
        if foreign := foreign_entry(folder, known, [path.name for path in existing]):
            raise OutputError(
                f"Cannot write {self.paths.decoder}: {folder / foreign} is not an engine's. "
                "Delete it yourself or choose another output",
                options=("output",),
            )

    def _listed_aside(self) -> set[str]:
        """Files of this engine that a writer may have moved before it was killed: listed in what it left."""
        files = (folder / name for folder in self.siblings() for name in (self.paths.info.name, REPLACED))
        return {name for file in files for name in ENGINE_JSON.listed_files(file) or ()}

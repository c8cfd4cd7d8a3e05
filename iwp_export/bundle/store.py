"""Bundles on disk: written aside and moved into place whole, verified when opened."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from iwp_export.bundle.manifest import MANIFEST_JSON, Manifest
from iwp_export.bundle.outputs import MANIFEST, place_flaw
from iwp_export.bundle.schema import Flaw
from iwp_export.bundle.staging import STAGING, Staging, move_into_place
from iwp_export.bundle.verify import (
    Verify,
    check_files,
    check_no_code,
    external_locations,
    foreign_entry,
    hash_files,
    plain_files,
)
from iwp_export.errors import BundleError, OutputError, os_reason

__all__ = ["Bundle", "BundleWriter", "Verify"]


class BundleWriter(Staging):
    """Context manager that builds a bundle in a staging folder beside its target.

    Write the files into `folder`, then call `commit`. Until then nothing exists at the target, and leaving the block
    without a commit removes the staging folder. A killed process leaves a staging folder only: `Bundle.open` refuses
    its name, and the next export to the same target clears it.

    Args:
        path: the bundle's folder; missing parents are made.
        force: replace a bundle, or an empty folder, that is there already. The old one goes when the new is complete.

    Raises:
        OutputError: the target exists and `force` is off, or it is something that `force` must not delete.
    """

    def __init__(self, path: Path | str, force: bool = False) -> None:
        self.path = Path(path)
        self._force = force
        super().__init__(Path(os.path.realpath(self.path.parent), self.path.name), self.path)
        self._check_target()

    def commit(self, manifest: Manifest) -> Manifest:
        """Hash every file, write the manifest last, and move the folder to the target in one rename.

        Args:
            manifest: the manifest; its `files` are replaced by what is in the folder.

        Returns:
            The manifest as written.

        Raises:
            OutputError: `Bundle.open` would refuse the bundle, the target changed meanwhile, or the disk is full.
        """
        try:
            names = plain_files(self.folder)
            manifest = replace(manifest, files=hash_files(self.folder, names, "Hashing the bundle", sync=True))
            text = MANIFEST_JSON.to_text(manifest)
            _check_content(self.folder, manifest)
            self.seal(MANIFEST, text, names)
            self._check_target()
            move_into_place([(self.folder, self._target)])
        except Flaw as flaw:
            raise OutputError(f"Cannot write {self.path}: {flaw}") from flaw
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {os_reason(error)}") from error
        return manifest

    def _check_target(self) -> None:
        if STAGING.fullmatch(self._target.name):
            raise OutputError(f"Cannot write {self.path}: names like this are kept for unfinished bundles")
        if flaw := place_flaw(self._target):
            raise OutputError(f"Cannot write {self.path}: {flaw}", options=("output",))
        if not self._target.exists():
            return
        if not self._force:
            raise OutputError(
                f"Cannot write {self.path}: it already exists. Remove it, choose another output, or replace it",
                options=("output", "force"),
            )
        if foreign := _foreign_content(self._target):
            raise OutputError(
                f"Cannot replace {self.path}: {foreign}. Remove it yourself or choose another output",
                options=("output",),
            )


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Use `Bundle.open`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, verify: Verify = "quick") -> Bundle:
        """Read a bundle's manifest and check its files against it.

        Args:
            path: the bundle's folder.
            verify: `quick` checks that all files are there with their sizes, and hashes those up to 64 MiB; `full`
                hashes all of them.

        Raises:
            BundleError: not a bundle, of another version, damaged, with missing, extra or changed files, with links or
                code, or with a graph that reads other files than its weights.
        """
        folder = Path(path)
        try:
            manifest = _read_manifest(folder)
            present = [name for name in plain_files(folder) if name != MANIFEST]
            check_files(folder, present, manifest.files, verify, "Verifying the bundle")
            _check_content(folder, manifest)
        except Flaw as flaw:
            raise BundleError(f"{folder} is damaged: {flaw}. Copy or export it again") from flaw
        except OSError as error:
            raise BundleError(f"{folder} cannot be read: {error.strerror or error} ({error.filename})") from error
        return cls(folder.resolve(), manifest)

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, or of a folder in it, by its name in the manifest.

        Raises:
            BundleError: the bundle has nothing of that name.
        """
        files = self.manifest.files
        if name not in files and not any(file.startswith(f"{name}/") for file in files):
            raise BundleError(f"{self.folder} has no file {name}; it has {', '.join(sorted(files))}")
        return self.folder / name

    def copy_processor(self, target: Path) -> None:
        """Copy the processor's files, without hidden ones that lie between them, to a new folder.

        Raises:
            OSError: it cannot be written.
        """
        prefix = f"{self.manifest.processor}/"
        for name in self.manifest.files:
            if name.startswith(prefix):
                copy = target / name.removeprefix(prefix)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, copy)


def _read_manifest(folder: Path) -> Manifest:
    if STAGING.fullmatch(folder.resolve().name):
        raise BundleError(f"{folder} is an unfinished bundle, left by an export that was interrupted: export it again")
    if not folder.exists():
        raise BundleError(f"{folder} does not exist")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file, not a bundle: a bundle is the folder that an export wrote")
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{folder} is not an iwp-export bundle: it has no {MANIFEST}")
    return MANIFEST_JSON.read(file, str(folder))


def _check_content(folder: Path, manifest: Manifest) -> None:
    """Check what the files are: the graphs and the processor are there, nothing is code, and no graph reads elsewhere.

    Raises:
        Flaw: they are not.
        OSError: a file cannot be read.
    """
    for role, graph in manifest.graphs.items():
        for name in (graph.file, graph.weights):
            if name not in manifest.files:
                raise Flaw(f"the {role} graph's file {name!r} is missing")
    if not any(name.startswith(f"{manifest.processor}/") for name in manifest.files):
        raise Flaw(f"the processor folder {manifest.processor!r} is missing or empty")
    check_no_code(folder, manifest.files)
    for role, graph in manifest.graphs.items():
        weights = Path(graph.weights).name
        if others := external_locations(folder / graph.file) - {weights}:
            raise Flaw(f"the {role} graph reads {min(others)!r}, which is not its weights file {weights!r}")


def _foreign_content(target: Path) -> str:
    """Why `target` must not be deleted in favour of a new bundle, or an empty string if it may."""
    if not target.is_dir():
        return "it is a file, not a bundle"
    if not any(target.iterdir()):
        return ""
    known = MANIFEST_JSON.listed_files(target / MANIFEST)
    if known is None:
        return "it is a folder that is not a bundle"
    foreign = foreign_entry(target, {MANIFEST, *known})
    return f"it holds {foreign}, which is not part of the bundle" if foreign else ""

"""Writing a built engine: its files are collected aside and moved into place together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iwp_export.bundle.schema import Flaw
from iwp_export.bundle.staging import Staging, move_into_place
from iwp_export.bundle.verify import check_no_code, foreign_entry, hash_files, plain_files
from iwp_export.engine.files import ENGINE_JSON, EngineInfo, EnginePaths
from iwp_export.errors import OutputError, os_reason

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
        existing = [path for path in self.paths.all if path.exists() or path.is_symlink()]
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

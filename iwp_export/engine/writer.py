"""Writing a built engine: its files are collected aside and moved into place together."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from iwp_export.bundle.place import fsync_folder, lock_folder
from iwp_export.engine.files import FORMAT, EngineInfo, EnginePaths, hash_file
from iwp_export.errors import OutputError


class EngineWriter:
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
        self._check_target()

    def __enter__(self) -> EngineWriter:
        try:
            self.paths.decoder.parent.mkdir(parents=True, exist_ok=True)
            self._clear_stale()
            name = f".{self.paths.decoder.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
            self.folder = self.paths.decoder.parent / name
            self.folder.mkdir()
            self._lock = lock_folder(self.folder)
        except OSError as error:
            raise _cannot_write(self.paths.decoder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def staged(self, path: Path) -> Path:
        """Where to write what will be `path`, one of `paths`."""
        return self.folder / path.name

    def commit(self, info: EngineInfo) -> EngineInfo:
        """Hash what was staged, and move it into place; NAME.json goes first if it is there, and comes last.

        Returns:
            The information as written, with its files.

        Raises:
            OutputError: the disk is full, or the target changed meanwhile.
        """
        try:
            names = sorted(p.relative_to(self.folder).as_posix() for p in self._staged_files())
            info = EngineInfo(**{**vars(info), "files": {name: hash_file(self.folder / name) for name in names}})
            text = json.dumps(info.to_dict(), indent=2, ensure_ascii=False) + "\n"
            self.staged(self.paths.info).write_text(text, encoding="utf-8")
            for file in self._staged_files():
                _sync(file)
            self._check_target()
            self.paths.info.unlink(missing_ok=True)
            if self.paths.processor.is_dir():
                shutil.rmtree(self.paths.processor)
            for path in self.paths.all:
                self.staged(path).replace(path)
            fsync_folder(self.paths.decoder.parent)
        except OSError as error:
            raise _cannot_write(self.paths.decoder, error) from error
        return info

    def _clear_stale(self) -> None:
        """Remove what killed builds of this engine left; the folder of a running one is locked."""
        for folder in self.paths.decoder.parent.glob(f".{glob.escape(self.paths.decoder.name)}.partial-*"):
            if (lock := lock_folder(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)

    def _staged_files(self) -> list[Path]:
        roots = [self.staged(path) for path in self.paths.all]
        files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
        return [file for file in files if file.is_file()]

    def _check_target(self) -> None:
        existing = [path for path in self.paths.all if path.exists()]
        if existing and not self._force:
            raise OutputError(f"Cannot write {self.paths.decoder}: {existing[0]} exists. Give --force or another -o")
        known = _known_files(self.paths.info)
        for path in existing:
            if path == self.paths.processor:
                inside = {f"{path.name}/{file.relative_to(path).as_posix()}" for file in path.rglob("*")}
                if not path.is_dir() or inside - known:
                    raise _foreign(self.paths, path)
            elif not path.is_file() or (path == self.paths.info and not known):
                raise _foreign(self.paths, path)


def _known_files(info: Path) -> set[str]:
    """Files of the engine that is there already; empty if it is none."""
    try:
        data = json.loads(info.read_bytes())
        return set(data["files"]) if data["format"] == FORMAT else set()
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return set()


def _foreign(paths: EnginePaths, path: Path) -> OutputError:
    return OutputError(f"Cannot write {paths.decoder}: {path} is not an engine's; delete it or give another -o")


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"Cannot write {path}: {error.strerror or error}. Choose another -o")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

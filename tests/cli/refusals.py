"""Commands that must fail in one line, and folders that make them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from iwp_export.cli.main import main
from iwp_export.models import ALIASES

TINY = Path(ALIASES["tiny-llava"])


def fails(capsys, *arguments: object) -> str:
    """Run a command that must fail, and return its one line."""
    assert main([str(argument) for argument in arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("iwp-export: error: "), shown.err
    return lines[0].removeprefix("iwp-export: error: ")


def refused(capsys, tmp_path, folder: Path, *arguments: object) -> str:
    """Export a checkpoint, which must fail and leave nothing beside it."""
    before = set(tmp_path.iterdir())
    line = fails(capsys, folder, *arguments)
    assert set(tmp_path.iterdir()) == before
    return line


def checkpoint(tmp_path: Path, weights: bool = True, **config: object) -> Path:
    """tiny-llava's folder with another configuration."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=None if weights else shutil.ignore_patterns("*.safetensors"))
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder

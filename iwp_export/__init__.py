"""Export vision-language models whose visual tokens are pruned inside the language model (IWP)."""

from __future__ import annotations

from iwp_export.api import build, export, load
from iwp_export.version import __version__

__all__ = ["__version__", "build", "export", "load"]

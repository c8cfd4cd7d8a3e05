"""Export vision-language models whose visual tokens are pruned inside the language model (IWP)."""

from __future__ import annotations

import os

from iwp_export.api import build, export, load
from iwp_export.version import __version__

# ONNX Runtime reads this once, when it is imported, by whichever package. Without it, each process puts a device id and
# a database of events for upload into the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__", "build", "export", "load"]

"""Export vision-language models whose visual tokens are pruned inside the language model (IWP).

Each verb of the command line is a function here. Importing this package imports no library: a function imports what it
needs when it is called.
"""

from __future__ import annotations

import os

from iwp_export.api import bench, build, calibrate, estimate, export, load, validate
from iwp_export.version import __version__

# ONNX Runtime reads this once, when it is imported, by whichever package. Without it, each process puts a device id and
# a database of events for upload into the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__", "bench", "build", "calibrate", "estimate", "export", "load", "validate"]

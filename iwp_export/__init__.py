"""Export vision-language models whose visual tokens are pruned inside the language model (IWP)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from iwp_export.version import __version__

if TYPE_CHECKING:
    from iwp_export.runtime.pipeline import Pipeline

# ONNX Runtime reads this once, when it is imported, by whichever package. Without it, each process puts a device id and
# a database of events for upload into the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__", "load"]


def load(path: str, **options: Any) -> Pipeline:
    """Open an exported bundle and return a pipeline that answers questions about images. Needs no torch.

    Args:
        path: folder of the bundle.
        **options: see `iwp_export.runtime.pipeline.Pipeline.open` (execution provider, threads, verification).

    Raises:
        BundleError: the folder is not a bundle, is damaged, or was written by a newer version.
    """
    from iwp_export.runtime.pipeline import Pipeline

    return Pipeline.open(path, **options)

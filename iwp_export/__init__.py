"""Export vision-language models whose visual tokens are pruned inside the language model (IWP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iwp_export.version import __version__

if TYPE_CHECKING:
    from iwp_export.runtime.pipeline import Pipeline


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

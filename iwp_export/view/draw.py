"""Draws the charts of a view with matplotlib."""

from __future__ import annotations

from iwp_export.errors import BackendError


def check_installed() -> None:
    """Refuse, before work of hours whose result is a page, where its charts cannot be drawn.

    Raises:
        BackendError: matplotlib is missing.
    """
    try:
        import matplotlib.backends.backend_svg  # noqa: F401
    except ImportError as error:
        name = (error.name or "matplotlib").partition(".")[0]  # or something that matplotlib needs
        raise BackendError(f"charts need {name}; to get it: pip install 'iwp-export[report]'") from error

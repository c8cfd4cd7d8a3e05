"""Memory of a build: an estimate before it starts, so that running out has a name."""

from __future__ import annotations

from iwp_export.device.memory import available_bytes
from iwp_export.errors import BackendError

BASE_BYTES = 600 << 20
"""Host memory that TensorRT takes for a small model."""
COPIES_OF_WEIGHTS = {1: 3.2, 2: 6.0}
"""Host memory per byte of weights by number of profiles, measured; docs/tensorrt.md has the figures."""


class BuildMemoryError(BackendError):
    """A build needs more memory than the machine has."""


def estimate_build_bytes(weight_bytes: int, profiles: int = 1) -> int:
    """Host memory that building an engine takes at its peak."""
    return BASE_BYTES + int(COPIES_OF_WEIGHTS[profiles] * weight_bytes)


def require_memory(what: str, weight_bytes: int, profiles: int = 1) -> None:
    """Refuse a build that would not fit.

    Raises:
        BuildMemoryError: the estimate exceeds what is available.
    """
    needed, available = estimate_build_bytes(weight_bytes, profiles), available_bytes()
    if available is not None and needed > available:
        raise BuildMemoryError(
            f"building the {what} needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are "
            "available: close other programs, add swap, build on a larger machine, or skip this check",
            options=("check_memory",),
        )

"""Whether the harnesses are here: they are no part of the environment that tests run in."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NEEDS_LMMS_EVAL = "needs lmms-eval"
needs_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason=f"{NEEDS_LMMS_EVAL}: pip install 'iwp-export[lmms-eval]'"
)

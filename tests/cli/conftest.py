"""What the tests of the command line share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[["--dry-run"], []], ids=["dry", "export"])
def dry(request):
    """What is refused by a dry run is refused by an export too."""
    return request.param

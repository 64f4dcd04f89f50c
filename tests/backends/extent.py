"""How much of the starters' tests runs: a spread of them, or all, with AUTOKERNEL_STARTERS=all (``make starters``)."""

from __future__ import annotations

import os

import pytest

ALL = os.environ.get("AUTOKERNEL_STARTERS") == "all"
REASON = "runs with AUTOKERNEL_STARTERS=all, as make starters does"
only_with_all = pytest.mark.skipif(not ALL, reason=REASON)

# SPDX-License-Identifier: Apache-2.0
"""The modules of benchmarks/, importable by their names, and problems to try them on.

Tests import this module before those: it skips them where the extra bench is missing.
"""

import pathlib
import sys
from dataclasses import replace

import pytest

from jax_na.tools import problems, profiler
from jax_na.tools.problems import BOTH

for package in ("execnet", "polars"):
    pytest.importorskip(package, reason="benchmarks need the extra bench")

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

from method import GPU, Case  # noqa: E402

GRID = problems.problem("grid", "", (2, 5, 6), (4, 8, 2), 3, dilation=(1, 2), is_causal=(True, False))
BIASED = replace(GRID, kv_heads=4, rpb=True, is_causal=(False, False))


def case(problem, device=GPU, direction=BOTH, **options):
    bounds = profiler.neighborhood(problem).bounds(problem.spatial)
    return Case(replace(problem, direction=direction), device, tuple(bounds), {}, **options)

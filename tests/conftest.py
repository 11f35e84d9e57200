# SPDX-License-Identifier: Apache-2.0
"""Eight CPU devices, fresh random numbers, 64-bit on request. Warnings are errors (pyproject.toml).

The tests run on the platform that JAX has: on a GPU, products of float32 values are exact there too.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

os.environ["JAX_NA_TUNING"] = "off"  # what was measured on this machine is no part of a test
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
jax.config.update("jax_num_cpu_devices", 8)
if jax.default_backend() == "gpu":
    jax.config.update("jax_default_matmul_precision", "highest")

SEED = int(os.environ.get("JAX_NA_TEST_SEED") or np.random.SeedSequence().entropy % 2**32)


def pytest_report_header() -> str:
    return f"random numbers: JAX_NA_TEST_SEED={SEED}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that differ between tests and between runs; the header says how to repeat a run."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compile() -> Iterator[None]:
    """Compile quickly rather than well: halves the time of tests whose programs are large and run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA kernels as they are built, or else what they say about themselves."""
    from jax_na.kernels import register
    from jax_na.kernels.platforms import CUDA

    from . import cuda_rows

    if CUDA not in register.TARGETS:
        table, binding = cuda_rows.module(), register.binding
        monkeypatch.setitem(register.TARGETS, CUDA, frozenset(table.targets()))
        monkeypatch.setattr(register, "architectures", lambda: ["80-virtual", "90a"])
        monkeypatch.setattr(register, "binding", lambda name: table if name == CUDA else binding(name))

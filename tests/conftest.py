# SPDX-License-Identifier: Apache-2.0
"""Eight CPU devices, fresh random numbers, 64-bit on request. Warnings are errors (pyproject.toml).

Without --exhaustive a run takes a part of the combinations of parameters (thinning.py says which), and XLA
compiles quickly rather than well.

The tests run on the platform that JAX has: on a GPU, products of float32 values are exact there too.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import hypothesis
import jax
import numpy as np
import pytest

from . import thinning
from .cuda_kernels import is_built

os.environ["JAX_NA_TUNING"] = "off"  # what was measured on this machine is no part of a test
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
jax.config.update("jax_num_cpu_devices", 8)
if jax.default_backend() == "gpu":
    jax.config.update("jax_default_matmul_precision", "highest")

SEED = int(os.environ.get("JAX_NA_TEST_SEED") or np.random.SeedSequence().entropy % 2**32)
os.environ["JAX_NA_TEST_SEED"] = str(SEED)  # the processes of pytest-xdist take the same
EXAMPLES = {"thinned": 4, "exhaustive": 12}  # of one test by hypothesis


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="all combinations of parameters")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "some(n): without --exhaustive, n of these tests")
    for name, number in EXAMPLES.items():
        hypothesis.settings.register_profile(name, max_examples=number)
    is_exhaustive = config.getoption("exhaustive")
    hypothesis.settings.load_profile("exhaustive" if is_exhaustive else "thinned")
    jax.config.update("jax_disable_most_optimizations", not is_exhaustive)
    if takes_some(config):
        os.environ.setdefault("JAX_NA_TEST_ARITHMETICS", thinning.arithmetics(SEED))


def takes_some(config: pytest.Config) -> bool:
    """Whether a part of the combinations is run; those named on the command line are."""
    return not config.getoption("exhaustive") and not any("[" in argument for argument in config.args)


def has_its_kernels(item: pytest.Item) -> bool:
    """Whether the CUDA kernels of a test, if it has a mode of these, are compiled for the executor."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return is_built(params.get("mode"))


def pytest_report_header(config: pytest.Config) -> str:
    part = "all" if config.getoption("exhaustive") else "some of all, see --exhaustive"
    return f"random numbers: JAX_NA_TEST_SEED={SEED}; combinations of parameters: {part}"


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not takes_some(config):
        return
    kept = thinning.thinned([item for item in items if has_its_kernels(item)], SEED)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


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
def quick_compile(pytestconfig: pytest.Config) -> Iterator[None]:
    """Compile quickly rather than well in every run: halves the time of large programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", not pytestconfig.getoption("exhaustive"))


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

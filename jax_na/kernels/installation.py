# SPDX-License-Identifier: Apache-2.0
"""What is installed: the version, and why there are no compiled kernels where there are none."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import pathlib
import warnings

from jax_na.kernels.platforms import CPU, CUDA

NOT_BUILT = {
    CPU: (
        "this installation has no CPU kernels: it was made with JAX_NA_CPU=OFF, or is the source folder of a "
        "checkout; pip install . with GCC or Clang builds them, pip install -e . does so in place"
    ),
    CUDA: (
        "this installation has no CUDA kernels; install jax-na again from source where there are an nvcc and "
        "a GPU, with JAX_NA_CUDA=ON in the environment if there is no GPU, and with JAX_NA_CUDA_TOOLKIT=pypi "
        "if there is no nvcc"
    ),
}


def version() -> str:
    """The version of the package, "0+unknown" in a folder that was never installed."""
    try:
        return importlib.metadata.version("jax-na")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def warn_of_hidden_kernels() -> None:
    """Warns if an installed package has kernels, and this one, which Python has found before it, has none."""
    try:
        folder = pathlib.Path(str(importlib.metadata.distribution("jax-na").locate_file("jax_na")))
    except importlib.metadata.PackageNotFoundError:
        return
    here = pathlib.Path(__file__).parent.parent
    if any((folder / f"_cpu{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        warnings.warn(
            f"jax_na comes from {here}, without compiled kernels, and hides the installed package in "
            f"{folder}, which has them: run from another folder, or install in place (pip install -e .)",
            RuntimeWarning,
            stacklevel=2,
        )

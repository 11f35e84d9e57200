# SPDX-License-Identifier: Apache-2.0
"""The table of CUDA kernels where the kernels are not built: the same C++, compiled for the host."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

import jax
import pytest

from .simt import build

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = (
    "tests/cuda_rows.cc",
    "cuda/host/variants.cc",
    "cuda/sm90/variant.cc",
    "cuda/halo/variants.cc",
    "cuda/fused/variants.cc",
    "cuda/gemm/variants.cc",
    "cuda/naive/variants.cc",
)
# The rows name functions that start kernels, which are not there: they are looked for when they are called.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DJAX_NA_HOPPER", "-Wl,-z,lazy")


@functools.cache
def module() -> Any:
    """Has `targets`, `variants` and `Query` like jax_na._cuda, as if built for compute capability 9.0 too."""
    if importlib.util.find_spec("jax_na._cuda") is not None:
        return importlib.import_module("jax_na._cuda")
    nanobind = pytest.importorskip("nanobind", reason="the table of kernels is compiled with nanobind")
    compiler = build.host_compiler()
    if compiler is None or sys.platform != "linux":
        pytest.skip("the table of kernels is compiled with a C++ compiler")
    return _load(_compiled(compiler, pathlib.Path(nanobind.source_dir())))


def _compiled(compiler: str, nanobind: pathlib.Path) -> pathlib.Path:
    """The compiled module, kept under a hash of what it is made of."""
    headers = [*ROOT.glob("common/**/*.h"), *ROOT.glob("cuda/**/*.h"), *ROOT.glob("cuda/**/*.cuh")]
    sources = [ROOT / source for source in SOURCES]
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted([*headers, *sources]):
        digest.update(file.read_bytes())
    folder = pathlib.Path(tempfile.gettempdir(), f"jax_na_cuda_rows_{digest.hexdigest()[:16]}")
    folder.mkdir(exist_ok=True)
    result = folder / f"cuda_rows{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not result.exists():
        includes = (
            ROOT,
            jax.ffi.include_dir(),
            sysconfig.get_path("include"),
            nanobind.parent / "include",
            nanobind.parent / "ext" / "robin_map" / "include",
        )
        partial = folder / f"{os.getpid()}.so"
        combined = nanobind / "nb_combined.cpp"
        command = [compiler, *FLAGS, *(f"-I{path}" for path in includes), *sources, combined, "-o", partial]
        subprocess.run(list(map(str, command)), check=True)
        partial.rename(result)
    return result


def _load(file: pathlib.Path) -> Any:
    spec = importlib.util.spec_from_file_location("cuda_rows", file)
    assert spec is not None
    assert spec.loader is not None
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    finally:
        sys.setdlopenflags(flags)
    return found

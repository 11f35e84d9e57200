# SPDX-License-Identifier: Apache-2.0
"""Faults planted in the GEMM CUDA kernels: the executor or a comparison with the oracle finds each."""

import ctypes
import pathlib
import shutil

import pytest

from . import cuda_kernels
from .cuda_problems import Problem
from .simt import build
from .test_cuda_gemm import PHASES, Gemm

pytestmark = [
    pytest.mark.some(1),
    pytest.mark.skipif(cuda_kernels.ON_DEVICE, reason="on a GPU, faults are not found"),
    pytest.mark.skipif(build.host_compiler() is None, reason="no C++ compiler"),
]
SOURCE = "gemm/gemm.cu"
FAULTS = {  # name -> (header, what is there, what is planted, what is found)
    "no barrier between carrying and clearing": (
        "gemm/qk.cuh",
        "      warp_sync();\n      if (carries)",
        "      if (carries)",
        "race",
    ),
    "no wait for weights": (
        "gemm/av.cuh",
        "    cp_async_wait<0>();\n    block_sync();",
        "    block_sync();",
        "race",
    ),
    "one buffer for two phases": ("gemm/av.cuh", "buffer ^ 1", "buffer", "race"),
    "a slot too early": (
        "gemm/inverse.cuh",
        "slot_of(params, origin, start) -",
        "slot_of(params, origin, start) - 1 -",
        "rel|uninit",
    ),
}


def faulty_library(folder: pathlib.Path, header: str, there: str, planted: str) -> pathlib.Path:
    """All kernels, those in bfloat16 with the fault."""
    for name in ("cuda", "common"):
        shutil.copytree(build.ROOT / name, folder / name)
    text = (folder / "cuda" / header).read_text()
    assert text.count(there) == 1
    (folder / "cuda" / header).write_text(text.replace(there, planted))
    faulty, math = folder / "cuda" / SOURCE, "BF16"
    with faulty.open("a") as source:
        source.write(f"// {header}: {planted!r} for {there!r}\n")  # objects are kept by the source's text
    kernels, dispatch = build.cuda_sources()
    sound = [kernel for kernel in kernels if kernel != build.unit(build.ROOT / "cuda" / SOURCE, math)]
    assert len(sound) == len(kernels) - 1
    host = [*dispatch, build.SIMT / "harness" / "harness.cc"]
    return build.host_library("faulty", [build.unit(faulty, math), *sound], host, folder)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name, tmp_path, monkeypatch, rng):
    header, there, planted, finding = FAULTS[name]
    library = ctypes.CDLL(str(faulty_library(tmp_path, header, there, planted)))
    monkeypatch.setattr(cuda_kernels, "library", lambda: library)
    gemm = Gemm(Problem.of(PHASES[1]), ("bfloat16", "default"), 64, rng)
    with pytest.raises(AssertionError, match=finding):
        gemm.check()

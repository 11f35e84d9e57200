# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel with CUDA kernels and checks what the compiler made of them; needs no GPU and no nvcc."""

from __future__ import annotations

import os
import pathlib
import shutil
import zipfile

from environments import ROOT, Environment, Run, build_wheel, requirements

DISASSEMBLER = ("nvidia-cuda-cuobjdump>=13", "nvidia-cuda-nvdisasm>=13")
AVAILABILITY = """
import jax_na
from jax_na import _cuda
print("compiled for", *_cuda.architectures())
for row in jax_na.implementations(platform="cuda"):
    print(row)
"""


def toolkit() -> dict[str, str]:
    """Where the compiler comes from: the package index, if the machine has none."""
    home = pathlib.Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda", "bin", "nvcc")
    return {} if shutil.which("nvcc") or home.exists() else {"JAX_NA_CUDA_TOOLKIT": "pypi"}


def build(
    run: Run, python: pathlib.Path, folder: pathlib.Path, architectures: str, **variables: str
) -> pathlib.Path:
    """The wheel for these architectures, "80;90a" say, or for all if none is named."""
    variables |= {"JAX_NA_CUDA": "ON", "JAX_NA_CUDA_ARCHITECTURES": architectures, **toolkit()}
    return build_wheel(run, python, folder, **variables)


def check_instructions(run: Run, environment: Environment, wheel: pathlib.Path) -> None:
    """The kernels in a wheel use the instructions that they were written for, and spill no registers."""
    environment.install(run, *DISASSEMBLER)
    tools = next(environment.folder.glob("lib/python*/site-packages/nvidia/cu*/bin"))
    for tool in tools.iterdir():
        tool.chmod(0o755)
    unpacked = environment.folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    module = next(unpacked.glob("jax_na/_cuda*.so"))
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    run(environment.python, ROOT / ".ci" / "check_sass.py", module, variables=path)


def check(run: Run, environment: Environment, architectures: str, **variables: str) -> None:
    """Everything about the wheel with CUDA kernels; without a driver it loads, and says why it cannot run."""
    folder = environment.folder.with_name("cuda-wheel")  # the environment begins with an empty folder
    wheel = build(run, environment.base, folder, architectures, **variables)
    environment.create(run, *requirements("test"))
    environment.install(run, "--no-deps", str(wheel))
    check_instructions(run, environment, wheel)
    run(environment.bin / "pytest", "-q", "tests/test_package.py", "-k", "cuda or table or wheel",
        variables={"JAX_NA_WHEEL": str(wheel)})  # fmt: skip
    run(environment.python, "-P", "-c", AVAILABILITY)

# SPDX-License-Identifier: Apache-2.0
"""What holds on systems that are not this one: the module links for macOS, and Python alone runs anywhere."""

from __future__ import annotations

import pathlib

from environments import ROOT, Environment, Run, build_wheel
from steps import Failure

LINKERS = ("cmake>=3.26", "ninja", "ziglang")
NOWHERE = "no-compiler"  # for CMake, if it looks for one


def link_for_macos(run: Run, tools: Environment, newest: Environment, work: pathlib.Path) -> None:
    """The CPU module for macOS on Apple's processors, by the CMake files of every other build."""
    folder, installed = work / "macos", work / "macos-module"
    include = newest.output("import sysconfig; print(sysconfig.get_path('include'))")
    nanobind = newest.output("import nanobind; print(nanobind.cmake_dir())")
    defines = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / ".ci" / "aarch64-macos.cmake",
        "CMAKE_MAKE_PROGRAM": tools.bin / "ninja",
        "Python_EXECUTABLE": newest.python,
        "Python_INCLUDE_DIR": include,
        "nanobind_DIR": nanobind,
        "JAX_NA_CUDA": "OFF",
        "JAX_NA_OBJECTS": "",  # zig keeps its own
    }
    if newest.version != "3.11":
        defines["SKBUILD_SABI_VERSION"] = "3.12"
    cmake, variables = tools.bin / "cmake", {"TOOLS": str(tools.python)}
    options = [f"-D{name}={value}" for name, value in defines.items()]
    run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *options, variables=variables)
    run(cmake, "--build", folder, "--parallel", "1", variables=variables)
    run(cmake, "--install", folder, "--prefix", installed)
    run(tools.python, ROOT / ".ci" / "macho.py", next(installed.glob("jax_na/_cpu*.so")))


def python_alone(run: Run, environment: Environment) -> None:
    """The wheel without kernels: built without a compiler, for any machine, it computes as pure JAX."""
    folder = environment.folder.with_name("python-alone-wheel")  # the environment begins with an empty folder
    wheel = build_wheel(run, environment.base, folder, JAX_NA_CPU="OFF", CC=NOWHERE, CXX=NOWHERE)
    if not wheel.name.endswith("-py3-none-any.whl"):
        raise Failure(f"{wheel.name} is not for any machine")
    environment.create(run, str(wheel))
    run(environment.python, "-P", "-m", "jax_na.tools.cli", "info")
    run(environment.python, ROOT / ".ci" / "smoke.py", "xla", cwd=environment.folder)

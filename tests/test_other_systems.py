# SPDX-License-Identifier: Apache-2.0
"""Where nothing is compiled, where Python is too old, and what is linked for macOS."""

import ast
import importlib.machinery
import importlib.metadata
import os
import pathlib
import re
import struct
import subprocess
import sys
import tomllib

import jax
import jax.export
import numpy as np
import pytest
from packaging.requirements import Requirement

import jax_na
from jax_na.kernels import installation
from jax_na.kernels.installation import NOT_BUILT

from .test_house import ROOT, tool


def python(code):
    """Runs code in another process, on the CPU."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", "-c", code]  # -P: not the source folder
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


NO_KERNELS = """
import sys
sys.modules["jax_na._cpu"] = sys.modules["jax_na._cuda"] = None  # as if they were not there

import jax, numpy as np, jax_na
jax.config.update("jax_disable_most_optimizations", True)
from jax_na.tools import cli
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 7, 8, 2, 4)).astype(np.float32)
options = dict(kernel_size=(3, 4), stride=(2, 1), dilation=(2, 1), is_causal=(False, True))

def attend(q, **more):
    return jax_na.na2d(q, k, v, **options, **more)

mask = jax_na.Neighborhood(**options).mask((7, 8)).reshape(56, 56)
scores = np.einsum("bxyhd,buvhd->bhxyuv", q, k).reshape(1, 2, 56, 56) / 2
weights = jax.nn.softmax(np.where(mask, scores, -np.inf))
expected = np.einsum("bhnm,bmhd->bnhd", weights, v.reshape(1, 56, 2, 4)).reshape(q.shape)
out, transposed = jax.jit(lambda q: jax.vjp(attend, q))(q)
np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
assert np.isfinite(transposed(out)[0]).all()
assert {row.name: row.reason for row in jax_na.implementations() if row.available} == {"xla": None}
for name in ("fused", "gemm", "naive"):
    try:
        attend(q, implementation=name)
    except ValueError as error:
        print(error)
cli.main(["info"])
"""


def test_no_kernels():
    """Attention is "xla", which computes all of it; the rest says what is missing and what would give it."""
    process = python(NO_KERNELS)
    assert process.returncode == 0, process.stderr
    for name in ("fused", "gemm", "naive"):
        assert f"implementation '{name}' cannot run: {NOT_BUILT['cpu']}" in process.stdout
    assert f"CPU kernels: {NOT_BUILT['cpu']}" in process.stdout
    assert f"CUDA kernels: {NOT_BUILT['cuda']}" in process.stdout
    assert "without a name (implementation=None): xla\n" in process.stdout
    assert "JAX_NA_CPU=OFF" in NOT_BUILT["cpu"]
    assert "pip install ." in NOT_BUILT["cpu"]


@pytest.mark.parametrize("platform", ["tpu", "rocm"])
def test_platforms_without_kernels(platform):
    """A program for them is pure JAX; a kernel that is asked for is an error that says what there is not."""
    q = jax.ShapeDtypeStruct((1, 9, 9, 2, 4), np.float32)

    def program(implementation):
        attend = jax.jit(lambda q: jax_na.na2d(q, q, q, 3, implementation=implementation))
        return jax.export.export(attend, platforms=[platform])(q)

    assert "custom_call @na_" not in program(None).mlir_module()
    with pytest.raises(ValueError, match="'fused' cannot run here: it has no kernels for this platform"):
        program("fused")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that is installed in another folder."""

    class Distribution:
        def locate_file(self, name):
            return tmp_path / name

    (tmp_path / "jax_na").mkdir()
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    return tmp_path / "jax_na"


def test_hidden_kernels(installed):
    """In the folder of a checkout, Python imports the sources instead of the installed package."""
    installation.warn_of_hidden_kernels()  # there are none
    (installed / f"_cpu{importlib.machinery.EXTENSION_SUFFIXES[-1]}").touch()
    with pytest.warns(RuntimeWarning, match="hides the installed package.*run from another folder") as caught:
        installation.warn_of_hidden_kernels()
    assert str(installed) in str(caught[0].message)


def test_a_folder_that_was_never_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert installation.version() == "0+unknown"
    installation.warn_of_hidden_kernels()


def test_python_that_is_too_old():
    """It says so, before anything that it cannot read."""
    process = python("import sys; sys.version_info = (3, 10, 13, 'final', 0); import jax_na")
    assert re.search(r"ImportError: jax_na needs Python 3\.11 or later, this is Python 3", process.stderr)
    ast.parse(pathlib.Path(jax_na.__file__).read_text(), feature_version=(3, 7))


def test_pip_says_that_python_is_too_old():
    """It reads `requires-python` after it has installed what a build needs, which must exist to get there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = list(map(Requirement, project["build-system"]["requires"]))
    old, new = (
        {r.name for r in needed if r.marker is None or r.marker.evaluate({"python_version": version})}
        for version in ("3.10", "3.11")
    )
    assert "jaxlib" in new - old
    assert project["project"]["requires-python"] == ">=3.11"


# Linked for macOS


def symbol(name, *, kind, library):
    """A name and its row of the table of symbols, without the place of the name."""
    return name, struct.pack("<BBHQ", kind, 0, library << 8, 0)


DEFINED = symbol("_PyInit__cpu", kind=0x0F, library=0)
OF_PYTHON = symbol("_PyList_New", kind=0x01, library=0xFE)
OF_SYSTEM = symbol("_malloc", kind=0x01, library=1)


def library(*symbols, processor=0x0100000C):
    """A Mach-O library with these symbols and nothing else."""
    names, rows = b"\0", b""
    for name, row in symbols:
        rows += struct.pack("<I", len(names)) + row
        names += name.encode() + b"\0"
    header = struct.pack("<8I", 0xFEEDFACF, processor, 0, 6, 1, 24, 0, 0)
    start = len(header) + 24
    command = struct.pack("<6I", 2, 24, start, len(symbols), start + len(rows), len(names))
    return header + command + rows + names


@pytest.mark.parametrize(
    ("symbols", "faults"),
    [
        ((DEFINED, OF_PYTHON, OF_SYSTEM), []),
        ((OF_PYTHON, OF_SYSTEM), ["it has no _PyInit__cpu"]),
        ((DEFINED, symbol("_other", kind=0x01, library=0)), ["_other is in no library"]),
    ],
)
def test_module_for_macos(symbols, faults):
    assert tool("macho").faults(library(*symbols), "_cpu") == faults


def test_module_for_another_system():
    with pytest.raises(ValueError, match=r"no library for aarch64-macos: .* processor 1000007"):
        tool("macho").faults(library(DEFINED, processor=0x01000007), "_cpu")


def test_options_for_zig():
    options = ["-bundle", "-Wl,@python.sym", "-Wl,-dead_strip", "-o", "_cpu.so"]
    expected = ["-shared", "-Wl,-undefined,dynamic_lookup", "-Wl,-dead_strip", "-o", "_cpu.so"]
    assert tool("zig_macos").translated(options) == expected

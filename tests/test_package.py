# SPDX-License-Identifier: Apache-2.0
"""What is installed: names, version, types, the built wheel, registration with XLA, every instruction set."""

import ast
import graphlib
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import jax_na
from jax_na import _cpu
from jax_na.kernels import register
from jax_na.kernels.table import ROWS

from . import helpers

needs_cuda_module = pytest.mark.skipif("cuda" not in register.TARGETS, reason="CUDA kernels are not built")
NAMES = {
    "Neighborhood",
    "attention_fn",
    "export_safety_checks",
    "implementations",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "neighborhood_av",
    "neighborhood_qk",
    "plot_attention",
    "plot_window",
    "region_attention",
    "share_tuning",
    "sharded_neighborhood_attention",
    "use_tuning",
}


def test_public_names():
    assert set(jax_na.__all__) == NAMES
    assert all(getattr(jax_na, name).__doc__ for name in NAMES)


def test_version():
    assert jax_na.__version__ == importlib.metadata.version("jax-na")


@pytest.mark.parametrize("package", ["jax_na", "flax_layers"])
def test_packages_are_typed(package):
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


def test_signatures_are_one():
    """All functions take what neighborhood_attention takes, in this order, with these defaults."""
    expected = inspect.signature(jax_na.neighborhood_attention).parameters
    for function in (jax_na.na1d, jax_na.na2d, jax_na.na3d):
        assert list(inspect.signature(function).parameters.items()) == list(expected.items())
    names = list(expected)
    assert names[:4] == ["query", "key", "value", "kernel_size"]
    assert names[4:9] == ["stride", "dilation", "is_causal", "is_periodic", "scale"]
    assert names[9:12] == ["rpb", "additional_keys", "additional_values"]
    assert names[12:14] == ["key_mask", "additional_mask"]
    assert names[14:] == ["return_lse", "implementation", "precision"]
    assert all(expected[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names[4:])
    for function, own, missing in (
        (jax_na.region_attention, ["length", "query_start", "key_start"], {"is_periodic"}),
        (jax_na.sharded_neighborhood_attention, ["axis_names", "length"], set()),
    ):
        found = dict(inspect.signature(function).parameters)
        assert list(found)[4 : 4 + len(own)] == own
        shared = [parameter for name, parameter in expected.items() if name not in missing]
        assert [p for name, p in found.items() if name in expected] == shared


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_functions_of_one_rank_have_names_of_their_own(rank):
    function = getattr(jax_na, f"na{rank}d")
    assert function.__name__ == function.__qualname__ == f"na{rank}d"
    assert f"jax_na.na{rank}d(" in function.__doc__
    q = np.ones((4,) * rank + (1, 2), np.float32)
    assert function(q, q, q, 3, return_lse=True)[1].shape == q.shape[:-1]
    with pytest.raises(TypeError, match="value"):
        function(q, q, kernel_size=3)


def test_a_neighborhood_stands_for_its_parameters():
    """In all public functions that take kernel_size."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 9, 8, 2, 4)).astype(np.float32)
    given = {"kernel_size": (3, 4), "stride": (2, 1), "dilation": (2, 1), "is_causal": (False, True)}
    n = jax_na.Neighborhood(**given)
    region = {"length": (9, 8), "query_start": 0, "key_start": 0}
    for function, options in (
        (jax_na.neighborhood_attention, {}),
        (jax_na.na2d, {}),
        (jax_na.region_attention, region),
    ):
        expected = function(q, k, v, **given, **options)
        helpers.assert_identical(function(q, k, v, n, **options), expected)
    weights = jax_na.neighborhood_qk(q, k, **given)
    helpers.assert_identical(jax_na.neighborhood_qk(q, k, n), weights)
    weights = jax.nn.softmax(weights)
    found = jax_na.neighborhood_av(weights, v, n)
    helpers.assert_identical(found, jax_na.neighborhood_av(weights, v, **given))
    assert jax_na.implementations(q, n) == jax_na.implementations(q, **given)


LAYERS = ("top", "xla", "kernels", "mesh", "rules", "api", "tools")  # each imports those before it alone


def test_packages_import_in_one_direction():
    """neighborhood.py and op.py are "top"; __init__.py, which collects what is public, is left out."""
    folder = pathlib.Path(jax_na.__file__).parent
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder).with_suffix("").parts
        if parts == ("__init__",):
            continue
        here = parts[0] if len(parts) > 1 else "top"
        for name in re.findall(r"^\s*(?:from|import) jax_na\.([\w.]+)", file.read_text(), re.MULTILINE):
            package = name.split(".")[0]
            there = package if package in LAYERS else "top"
            assert LAYERS.index(there) <= LAYERS.index(here), f"{'.'.join(parts)} imports jax_na.{name}"


def test_modules_import_in_no_circle():
    """In a topological order of the modules, one that imports another comes after it."""
    folder = pathlib.Path(jax_na.__file__).parent
    names = {
        ".".join(("jax_na", *file.relative_to(folder).with_suffix("").parts)): file
        for file in folder.rglob("*.py")
        if file.name != "__init__.py"
    }
    graph = {name: set(imported_by(file)) & set(names) for name, file in names.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) == len(names)


def imported_by(file):
    """Names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_table_of_implementations():
    rows = {row.name: row for row in jax_na.implementations(platform="cpu")}
    assert list(rows) == ["fused", "gemm", "naive", "xla"]
    assert all(row.available and row.reason is None for row in rows.values())
    assert [name for name, row in rows.items() if not row.unfused] == ["fused"]


def test_table_for_another_platform():
    rows = {row.name: row for row in jax_na.implementations(platform="tpu")}
    assert [name for name, row in rows.items() if row.available] == ["xla"]
    assert "tpu" in rows["fused"].reason


def test_table_for_a_problem():
    double = jax.ShapeDtypeStruct((1, 9, 1, 4), np.float64)
    rows = {row.name: row for row in jax_na.implementations(double, (3,), platform="cpu")}
    assert [name for name, row in rows.items() if row.available] == ["naive", "xla"]
    assert "float64" in rows["fused"].reason


def test_kernels_of_the_table_are_registered():
    names = {target for row in ROWS for target in row.targets}
    assert names <= register.TARGETS["cpu"] == set(_cpu.handlers())


@needs_cuda_module
def test_cuda_kernels_of_the_table_are_registered():
    cuda = importlib.import_module("jax_na._cuda")
    names = {target for row in ROWS for target in row.targets}
    assert names <= register.TARGETS["cuda"] == set(cuda.handlers()) <= register.TARGETS["cpu"]
    assert cuda.ffi_api_version() == _cpu.ffi_api_version()
    assert cuda.architectures()


@needs_cuda_module
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_cuda_module_needs_no_driver():
    """It links to nothing of CUDA: the runtime is inside, and finds a driver when there is one."""
    file = importlib.util.find_spec("jax_na._cuda").origin
    text = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert needed
    assert not [name for name in needed if re.match(r"libcu|libnv|libstdc", name)], needed


# In fresh interpreters


def python(code, *arguments, **environment):
    """Runs code in another process, on the CPU, with more environment variables."""
    command = [sys.executable, "-P", "-c", code, *arguments]  # -P: not the source folder
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


OLDER_JAXLIB = """
import pathlib, sys
header = pathlib.Path(sys.argv[1], "xla/ffi/api/c_api.h")
header.parent.mkdir(parents=True)
header.write_text("#define XLA_FFI_API_MAJOR 0\\n#define XLA_FFI_API_MINOR 1\\n")

import jax, jax.numpy as jnp
jax.ffi.include_dir = lambda: sys.argv[1]
import jax_na
q = jnp.ones((1, 5, 1, 2))
print({row.name: row.reason for row in jax_na.implementations()})
print(float(jax_na.na1d(q, q, q, 3).sum()))
try:
    jax_na.na1d(q, q, q, 3, implementation="fused")
except ValueError as error:
    print(error)
"""


def test_older_jaxlib(tmp_path):
    """Kernels newer than jaxlib are not registered: JAX and "xla" work, the rest says why it does not."""
    process = python(OLDER_JAXLIB, str(tmp_path))
    assert process.returncode == 0, process.stderr
    reasons, total, error = process.stdout.splitlines()
    major, minor = _cpu.ffi_api_version()
    refusal = (
        f"the kernels were built for XLA FFI {major}.{minor}, the installed jaxlib has 0.1: update jaxlib"
    )
    assert reasons.count(refusal) == 3
    assert "'xla': None" in reasons
    assert float(total) == pytest.approx(10.0)
    assert error.startswith("implementation 'fused' cannot run")
    assert refusal in error


EVERY_KERNEL = """
import sys, jax, jax.numpy as jnp, numpy as np, jax_na
rng = np.random.default_rng(0)
results = {}
for name in ("naive", "gemm", "fused"):
    for dtype in map(jnp.dtype, ("float32", "bfloat16", "float16")):
        q, k, v = rng.standard_normal((3, 1, 9, 21, 2, 19)).astype(dtype)
        rpb = rng.standard_normal((2, 9, 5)).astype(np.float32)
        def total(q, k, v, rpb):
            options = dict(dilation=(1, 2), rpb=rpb, return_lse=True, implementation=name)
            out, lse = jax_na.na2d(q, k, v, (5, 3), **options)
            return (out.astype(jnp.float32) ** 2).sum() + lse.sum()
        value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(q, k, v, rpb)
        for x, gradient in zip("qkvr", gradients):
            results[f"{dtype.name} {name} {x}"] = np.asarray(gradient, np.float32)
        results[f"{dtype.name} {name} value"] = np.asarray(value)
np.savez(sys.argv[1], isa=jax_na._cpu.isa(), **results)
"""


@pytest.fixture(scope="module")
def every_kernel(tmp_path_factory):
    """Values and gradients of all kernels as another process with these variables computes them."""

    def run(**environment):
        file = tmp_path_factory.mktemp("results") / "results.npz"
        process = python(EVERY_KERNEL, str(file), **environment)
        assert process.returncode == 0, process.stderr
        return dict(np.load(file))

    return run


@pytest.fixture(scope="module")
def plain(every_kernel):
    return every_kernel()


@pytest.mark.some(2)
@pytest.mark.parametrize("level", _cpu.isa_levels())
def test_instruction_sets(level, plain, every_kernel):
    """Each of them computes the same, up to the order of sums."""
    results = every_kernel(JAX_NA_ISA=level)
    assert results.pop("isa") == level
    for name, result in results.items():
        tolerance = helpers.TOLERANCE[name.split()[0]][1]
        assert helpers.relative_error(result, plain[name]) <= tolerance, name


def test_unknown_instruction_set():
    process = python("from jax_na import _cpu; _cpu.isa()", JAX_NA_ISA="sse9")
    assert process.returncode != 0
    levels = " ".join(_cpu.isa_levels())
    assert f"JAX_NA_ISA=sse9 cannot run here; this machine has: {levels}" in process.stderr


@pytest.mark.some(1)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator fills new memory on request")
@pytest.mark.parametrize("byte", ["1", "129"])
def test_uninitialised_memory_is_not_read(byte, plain, every_kernel):
    """New memory full of huge numbers (bytes of 254: -1.7e38; of 126: 8.5e37) does not change a bit."""
    helpers.assert_identical(every_kernel(MALLOC_PERTURB_=byte), plain)


def test_wheel():
    """The built wheel: both packages, the compiled kernels, the licence, and nothing else."""
    if "JAX_NA_WHEEL" not in os.environ:
        pytest.skip("JAX_NA_WHEEL names no wheel")
    with zipfile.ZipFile(os.environ["JAX_NA_WHEEL"]) as wheel:
        files = set(wheel.namelist())
        metadata = wheel.read(next(f for f in files if f.endswith(".dist-info/METADATA"))).decode()
    assert f"Version: {jax_na.__version__}" in metadata
    assert {pathlib.PurePath(f).parts[0] for f in files if ".dist-info" not in f} == {"jax_na", "flax_layers"}
    assert {"jax_na/py.typed", "flax_layers/py.typed", "jax_na/_cpu.pyi"} <= files
    assert len([f for f in files if f.startswith("jax_na/_cpu.") and f.endswith((".so", ".pyd"))]) == 1
    assert any(f.endswith("/LICENSE") for f in files)
    allowed = (".py", ".pyi", ".typed", ".so", ".pyd", ".json")
    assert all(f.endswith(allowed) for f in files if ".dist-info" not in f)

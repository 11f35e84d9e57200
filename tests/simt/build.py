# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA sources as shared libraries, with a C++ compiler for the executor or with nvcc.

Objects are kept in a temporary folder under a hash of everything they depend on, so that a run of the tests
compiles only what has changed, and processes that start together compile it once.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIMT = ROOT / "simt"
HEADERS = ("common/**/*.h", "cuda/**/*.h", "cuda/**/*.cuh", "simt/**/*.h", "simt/**/*.cuh")
HEADERS += ("cuda/sm90/forward.cu",)  # which a faulty kernel includes
FLAGS = (
    "-std=c++17",
    "-O1",
    "-gdwarf-4",
    "-fno-var-tracking",  # lines are needed, values of variables are not: a quarter of the time
    "-fno-optimize-sibling-calls",
    "-fPIC",
    "-Wall",
    "-Wno-unknown-pragmas",
)
FLAGS += ("-DJAX_NA_SIMT", "-DJAX_NA_HOPPER")
KERNEL_FLAGS = ("-x", "c++", "-fsanitize=thread")  # every access becomes a call that the executor checks
NVCC_FLAGS = (f"-I{ROOT}", "-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-lineinfo")
KEPT_SECONDS = 3 * 24 * 3600


class BuildError(RuntimeError):
    """A source does not compile; the message has the compiler's."""


def host_compiler() -> str | None:
    """$CXX, g++ or clang++, None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "", "g++", "clang++"))), None)


def nvcc() -> str | None:
    """The CUDA compiler on the PATH or in $CUDA_HOME, None if there is none."""
    home = pathlib.Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda", "bin", "nvcc")
    return shutil.which("nvcc") or shutil.which(str(home))


def architecture() -> str:
    """Of this machine's GPU, "90a" or the like, with the instructions that it alone has; "" if not known."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "90a" if found == "9.0" else found.replace(".", "")


Unit = tuple[pathlib.Path, tuple[str, ...]]  # a source, and what to define for it
ARITHMETICS = ("F16", "BF16", "TF32", "ExactF32")
MATHS = {  # source in cuda/ -> what it is compiled for, as in cuda/CMakeLists.txt
    "fused/forward.cu": ARITHMETICS,
    "fused/backward_query.cu": ARITHMETICS,
    "fused/backward_key.cu": ARITHMETICS,
    "gemm/gemm.cu": ARITHMETICS,
    "halo/forward.cu": ("F16", "BF16"),
    "halo/backward_query.cu": ("F16", "BF16"),
    "halo/backward_key.cu": ("F16", "BF16"),
    "naive/naive.cu": ("float", "double", "Half", "BFloat16"),
    "sm90/forward.cu": ("F16Type", "BF16Type"),
    "host/device.cu": ("Any",),
}


def unit(source: pathlib.Path, math: str) -> Unit:
    """A source of kernels, to be compiled for one arithmetic or element type."""
    return source, (f"-DJAX_NA_MATH={math}",)


def cuda_sources(arithmetics: Sequence[str] = ARITHMETICS) -> tuple[list[Unit], list[pathlib.Path]]:
    """The library's kernels, and the ordinary sources that choose among them.

    Kernels of other arithmetics are an error when they are called.
    """
    cuda = ROOT / "cuda"
    absent = set(ARITHMETICS) - set(arithmetics)
    every = [(cuda / source, math) for source, maths in MATHS.items() for math in maths]
    kernels = [unit(source, math) for source, math in every if math not in absent]
    kernels += [unit(SIMT / "harness" / "absent.cc", math) for math in sorted(absent)]
    host = [*cuda.glob("*/variant*.cc"), cuda / "host" / "run.cc", ROOT / "common" / "call" / "call.cc"]
    return kernels, sorted(host)


def host_library(
    name: str, kernels: Sequence[Unit], host: Sequence[pathlib.Path], root: pathlib.Path = ROOT
) -> pathlib.Path:
    """A library of `kernels`, which the executor runs and checks, and of ordinary sources.

    Sources below `root`, a copy of the tree, take their headers from there.

    Raises:
        BuildError: if one does not compile, or if there is no compiler.
    """
    compiler = host_compiler()
    if compiler is None:
        raise BuildError("there is no C++ compiler")

    def command(source: pathlib.Path) -> tuple[str, ...]:
        copied = (f"-I{root}",) if root in source.parents and root != ROOT else ()
        return (compiler, *FLAGS, *copied, f"-I{ROOT}")

    commands = [(source, (*command(source), *definitions, *KERNEL_FLAGS)) for source, definitions in kernels]
    executor = sorted((SIMT / "executor").glob("*.cc")) if kernels else []
    commands += [(source, command(source)) for source in (*host, *executor)]
    return _library(name, commands, (compiler, "-shared"))


def device_library(
    name: str, kernels: Sequence[Unit], host: Sequence[pathlib.Path] = (), architecture: str = ""
) -> pathlib.Path:
    """A library of `kernels` and other sources made with nvcc, for "90a" or the like, or this machine's GPU.

    Raises:
        BuildError: if one does not compile, or if there is no nvcc.
    """
    compiler = nvcc()
    if compiler is None:
        raise BuildError("there is no nvcc")
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}" if architecture else "-arch=native"
    hopper = ("-DJAX_NA_HOPPER",) if architecture == "90a" else ()
    command = (compiler, *NVCC_FLAGS, code, *hopper)
    link = (compiler, "-shared", code)
    commands = [(source, (*command, *definitions)) for source, definitions in kernels]
    commands += [(source, (*command, "-x", "cu")) for source in host]
    return _library(name, commands, link)


Commands = Sequence[tuple[pathlib.Path, tuple[str, ...]]]


def _library(name: str, commands: Commands, link: tuple[str, ...]) -> pathlib.Path:
    with _locked_folder() as folder:
        targets = [folder / f"{source.stem}-{_hash(source, command)}.o" for source, command in commands]
        missing = [(c, s, t) for (s, c), t in zip(commands, targets, strict=True) if not t.exists()]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: _run([*job[0], "-c", str(job[1])], job[2]), missing))
        digest = hashlib.sha256(" ".join(t.name for t in targets).encode()).hexdigest()[:16]
        library = folder / f"{name}-{digest}.so"
        if not library.exists():
            _run([*link, *map(str, targets)], library)
        for used in (*targets, library):
            used.touch()
    return library


def _run(command: Sequence[str], target: pathlib.Path) -> None:
    """Runs a compiler; the target appears only when it is complete."""
    part = target.with_suffix(f".{os.getpid()}{target.suffix}")
    result = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    part.replace(target)


def _hash(source: pathlib.Path, command: Sequence[str]) -> str:
    digest = hashlib.sha256(" ".join(command).encode() + _headers() + _version(command[0]))
    digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _headers() -> bytes:
    files = sorted(file for pattern in HEADERS for file in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).digest()


@functools.cache
def _version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True).stdout


@contextlib.contextmanager
def _locked_folder() -> Iterator[pathlib.Path]:
    """The folder of all objects, for one process at a time, without what has not been used for days."""
    folder = pathlib.Path(tempfile.gettempdir(), f"jax-na-simt-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in folder.glob("*.*"):
            if file.stat().st_mtime < time.time() - KEPT_SECONDS:
                file.unlink(missing_ok=True)
        yield folder

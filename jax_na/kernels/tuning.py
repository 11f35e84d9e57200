# SPDX-License-Identifier: Apache-2.0
"""Measured choices, kept in a JSON file: written by `jax-na tune`, read when a call is compiled.

The file is `$JAX_NA_TUNING`, else `jax-na/tuning.json` in the user's cache directory; `JAX_NA_TUNING=off` is
for none. It maps a key, the machine, dtype, features and geometry of a problem as in

    cpu avx512 | float32 32 | 56x56 | kernel 7x7 stride 1x1 dilation 1x1 causal 0x0
    cuda NVIDIA H100 | bfloat16 64 rpb | ...

to what was fastest there, `{"attention": "fused", "kernels": {"na_fused_forward": "rows:4"}}`; any of it may
be missing. A file that goes with a model counts inside of `use_tuning`. Nothing but speed depends on any of
it. Functions that are compiled already keep what they were compiled with.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_na.kernels import devices, register
from jax_na.kernels.platforms import CPU, CUDA
from jax_na.neighborhood import by
from jax_na.op import Op

if TYPE_CHECKING:
    from jax_na.kernels.contract import Problem

VERSION = 3  # of the file; files of other versions are ignored


class Choice(TypedDict, total=False):
    """What is fastest.

    `attention`: the implementation for `implementation=None`. `kernels`: for every target the attribute of
    the same name (kernels/plan.py), ignored where no kernel has such tiles.
    """

    attention: str
    kernels: dict[str, str]


Choices = dict[str, Choice]


def key(op: Op, problem: Problem, platform: str = CPU) -> str:
    """The machine, what a kernel is made for, and the geometry.

    Batch, heads and features of values hardly change which choice is the fastest.
    """
    kind = " ".join([problem.dtype, str(problem.head_dim), *problem.operands])
    machine, geometry = _place(op, platform)
    return f"{machine} | {kind} | {geometry}"


def _place(op: Op, platform: str) -> tuple[str, str]:
    machine = devices.cuda_kind() if platform == CUDA else register.binding(CPU).isa()
    n = op.neighborhood
    values = (n.kernel_size, n.stride, n.dilation, tuple(map(int, n.is_causal)))
    window = zip(("kernel", "stride", "dilation", "causal"), values, strict=True)
    return f"{platform} {machine}", f"{by(op.length)} | {' '.join(f'{name} {by(v)}' for name, v in window)}"


def lookup(op: Op, problem: Problem, platform: str = CPU) -> Choice:
    """What is known about this problem, {} if nothing is: on trial, in use, or in the file."""
    if trial := _trials.get(_place(op, platform)):
        return trial
    name = key(op, problem, platform)
    for choices in reversed(_in_use.get()):
        if name in choices:
            return choices[name]
    return _entries().get(name, {})


def ignore(target: str, kernels: str, op: Op) -> None:
    """Warns, once, that a choice is not taken."""
    _warn_once(
        f"a tuned choice is ignored: {target} has no kernels {kernels!r} here for {op.neighborhood} on "
        f"{by(op.length)}; jax-na tune measures anew"
    )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def store(op: Op, problem: Problem, choice: Choice, platform: str = CPU) -> pathlib.Path:
    """Adds a choice to the file, or replaces the one with the same key; returns the file."""
    return _write({key(op, problem, platform): choice})


def merge(files: Iterable[pathlib.Path]) -> pathlib.Path:
    """Adds the choices of other files to the file; of equal keys the last one counts.

    Raises:
        ValueError: one is no tuning file of this version.
    """
    found: Choices = {}
    for file in files:
        found |= read(file)
    return _write(found)


def _write(choices: Choices) -> pathlib.Path:
    file = own_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, "choices": _own_entries() | choices}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
        new.write(text)
    os.replace(new.name, file)  # a reader sees the old file or the new one
    return file


@contextlib.contextmanager
def use_tuning(file: str | os.PathLike[str]) -> Iterator[None]:
    """Inside it, functions are compiled with the choices of a file, before those of the user's own.

    For files that are shipped with a model; `jax-na tune` writes them, to `$JAX_NA_TUNING`. What the file
    does not know is taken as before. Functions that are compiled already keep their choices.

    Raises:
        ValueError: it is no tuning file of this version of jax-na.
        OSError: it cannot be read.

    Example:
        >>> import os, tempfile
        >>> file = os.path.join(tempfile.mkdtemp(), "tuning.json")
        >>> with open(file, "w") as new:
        ...     _ = new.write('{"version": 3, "choices": {}}')
        >>> with jax_na.use_tuning(file):
        ...     out = jax_na.na2d(q, k, v, kernel_size=3)
    """
    token = _in_use.set((*_in_use.get(), read(pathlib.Path(file))))
    try:
        yield
    finally:
        _in_use.reset(token)


def share_tuning() -> None:
    """All processes of a program take the choices of process 0's file.

    Call it in every process after `jax.distributed.initialize`. Without it, programs of several processes
    leave the file alone: its choices may differ from host to host, and so would the compiled programs.
    """
    global _shared
    text = json.dumps(_own_entries()).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    padded = np.frombuffer(text.ljust(size), np.uint8)[:size]
    _shared = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))


@contextlib.contextmanager
def trial(op: Op, choice: Choice, platform: str = CPU) -> Iterator[None]:
    """Inside it, `lookup(op)` is `choice`: what is to be measured. Compile the function anew inside."""
    place = _place(op, platform)
    _trials[place] = choice
    try:
        yield
    finally:
        del _trials[place]


_trials: dict[tuple[str, str], Choice] = {}
_in_use: contextvars.ContextVar[tuple[Choices, ...]] = contextvars.ContextVar("_in_use", default=())
_shared: Choices | None = None


def path() -> pathlib.Path | None:
    """The file, None if there shall be none."""
    given = os.environ.get("JAX_NA_TUNING")
    if given:
        return None if given == "off" else pathlib.Path(given)
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        cache = "~/Library/Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "jax-na" / "tuning.json"


def read(file: pathlib.Path) -> Choices:
    """The choices of a file.

    Raises:
        ValueError: it is no tuning file of this version.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(file.read_text())
        if document["version"] != VERSION:
            raise ValueError(f"its version is {document['version']}, not {VERSION}")
        choices: Choices = dict(document["choices"])
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not a tuning file of jax-na: it is not JSON") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a tuning file of jax-na: {error!r}") from error
    return choices


def _entries() -> Choices:
    """Of the file, or as process 0 has shared it."""
    if _shared is not None:
        return _shared
    found = _own_entries()
    if found and jax.process_count() > 1:
        _warn_once(
            f"{path()} is ignored: the program has {jax.process_count()} processes, whose files may differ; "
            f"call jax_na.share_tuning() in each, after jax.distributed.initialize, to take that of the first"
        )
        return {}
    return found


def own_file() -> pathlib.Path:
    """The file that choices are stored in.

    Raises:
        ValueError: there shall be none.
    """
    file = path()
    if file is None:
        raise ValueError("JAX_NA_TUNING=off: there is no file to store the result in")
    return file


def _own_entries() -> Choices:
    file = path()
    try:
        return _read(file, file.stat().st_mtime_ns) if file else {}
    except OSError:
        return {}


@functools.lru_cache(maxsize=1)
def _read(file: pathlib.Path, changed: int) -> Choices:
    try:
        return read(file)
    except ValueError as error:
        warnings.warn(f"it is ignored: {error}", stacklevel=2)
        return {}

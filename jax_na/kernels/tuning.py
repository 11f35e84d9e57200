# SPDX-License-Identifier: Apache-2.0
"""Measured choices, kept in a JSON file: written by `jax-na tune`, read when a call is compiled.

The file is `$JAX_NA_TUNING`, else `jax-na/tuning.json` in the user's cache directory; `JAX_NA_TUNING=off` is
for none. It maps a key, the machine and the geometry of a problem as in

    cpu avx512 | 56x56 | kernel 7x7 stride 1x1 dilation 1x1 causal 0x0
    cuda NVIDIA H100 | ...

to what was fastest there, `{"attention": "fused", "kernels": {"na_fused_forward": "rows:4"}}`; any of it may
be missing. Nothing but speed depends on it. Functions that are compiled already keep what they were compiled
with.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import TypedDict

from jax_na.kernels import devices, register
from jax_na.kernels.platforms import CPU, CUDA
from jax_na.neighborhood import by
from jax_na.op import Op

VERSION = 2  # of the file; files of other versions are ignored


class Choice(TypedDict, total=False):
    """What is fastest.

    `attention`: the implementation for `implementation=None`. `kernels`: for every target the attribute of
    the same name (kernels/plan.py), ignored where no kernel has such tiles.
    """

    attention: str
    kernels: dict[str, str]


def key(op: Op, platform: str = CPU) -> str:
    """The machine and the geometry; batch, heads and dtype hardly change which choice is the fastest."""
    machine = devices.cuda_kind() if platform == CUDA else register.binding(CPU).isa()
    n = op.neighborhood
    values = (n.kernel_size, n.stride, n.dilation, tuple(map(int, n.is_causal)))
    window = zip(("kernel", "stride", "dilation", "causal"), values, strict=True)
    return f"{platform} {machine} | {by(op.length)} | {' '.join(f'{name} {by(v)}' for name, v in window)}"


def lookup(op: Op, platform: str = CPU) -> Choice:
    """What is known about this problem, {} if nothing is."""
    name = key(op, platform)
    return _trials.get(name) or _entries().get(name, {})


def store(op: Op, choice: Choice, platform: str = CPU) -> pathlib.Path:
    """Adds a choice to the file, or replaces the one with the same key; returns the file."""
    file = path()
    if file is None:
        raise ValueError("JAX_NA_TUNING=off: there is no file to store the result in")
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, "choices": _entries() | {key(op, platform): choice}}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
        new.write(text)
    os.replace(new.name, file)  # a reader sees the old file or the new one
    return file


@contextlib.contextmanager
def trial(op: Op, choice: Choice, platform: str = CPU) -> Iterator[None]:
    """Inside it, `lookup(op)` is `choice`: what is to be measured. Compile the function anew inside."""
    name = key(op, platform)
    _trials[name] = choice
    try:
        yield
    finally:
        del _trials[name]


_trials: dict[str, Choice] = {}


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


def _entries() -> dict[str, Choice]:
    file = path()
    try:
        return _read(file, file.stat().st_mtime_ns) if file else {}
    except OSError:
        return {}


@functools.lru_cache(maxsize=1)
def _read(file: pathlib.Path, changed: int) -> dict[str, Choice]:
    try:
        document = json.loads(file.read_text())
        if document["version"] != VERSION:
            raise ValueError(f"its version is {document['version']}, not {VERSION}")
        choices: dict[str, Choice] = document["choices"]
        return dict(choices)
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{file} is ignored, it is not a tuning file of jax-na: {error!r}", stacklevel=2)
        return {}

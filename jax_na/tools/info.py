# SPDX-License-Identifier: Apache-2.0
"""`jax-na info`: what is installed, what runs on this machine, and why not the rest."""

from __future__ import annotations

import argparse
import platform

import jax

import jax_na
from jax_na.kernels import devices, plan, register, tuning
from jax_na.kernels.platforms import CPU, CUDA, PLATFORMS
from jax_na.kernels.table import ATTENTION, DEFAULT_ORDER


def require_platform() -> None:
    """JAX must find one of the platforms that it is told to take.

    Raises:
        ValueError: if it finds none.
    """
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError):
        asked = jax.config.jax_platforms
        raise ValueError(
            f"JAX finds none of the platforms that it is told to take, JAX_PLATFORMS={asked}; install their "
            f'plugin, for "cuda" by pip install "jax[cuda13]", or unset JAX_PLATFORMS'
        ) from None


def info(options: argparse.Namespace) -> None:
    """Versions, the machine, and which implementations can run."""
    require_platform()
    print(f"jax-na {jax_na.__version__}, jax {jax.__version__}, Python {platform.python_version()}")
    print(f"platform {jax.default_backend()}: {', '.join(str(d) for d in jax.devices()[:8])}")
    print(f"CPU kernels: {register.refusal(CPU) or _cpu_kernels()}")
    print(f"CUDA kernels: {register.refusal(CUDA) or _cuda_kernels()}")
    file = tuning.path()
    print(
        f"tuning: {'off' if file is None else file}{'' if file is None or file.exists() else ' (none yet)'}"
    )
    print("implementations, fastest first:")
    for row in jax_na.implementations():
        state = "runs" if row.available else f"cannot run: {row.reason}"
        print(f"  {row.name:6} {state:5}  {row.about}")
    print(f"without a name (implementation=None): {_default()}")
    for name in PLATFORMS:
        if name in register.TARGETS:
            _print_kernels(name)


def _print_kernels(name: str) -> None:
    """The kernels of a platform, pass after pass, and what keeps each from running here."""
    print(f"kernels for {name}:")
    for row in jax_na.implementations(platform=name):
        for kernel in row.variants:
            state = "runs" if kernel.available else f"cannot run: {kernel.reason}"
            print(f"  {kernel.target:17} {kernel.pass_name:14} {kernel.name:8} {state}")


def _default() -> str:
    """What attention takes if no implementation is asked for."""
    here = {row.name for row in jax_na.implementations() if row.available}
    return ", or else ".join(name for name in DEFAULT_ORDER[ATTENTION] if name in here)


def _cpu_kernels() -> str:
    cpu = register.binding(CPU)
    return f"{cpu.isa()} of {', '.join(cpu.isa_levels())}, {plan.workers()} threads"


def _cuda_kernels() -> str:
    names = f"compiled for {', '.join(register.architectures())}"
    return names if devices.cuda_devices() else f"{names}; JAX has no CUDA device here"

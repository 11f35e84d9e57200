# SPDX-License-Identifier: Apache-2.0
"""The kernels of this installation, registered with XLA when this is imported, and why others are missing.

XLA accepts handlers built for its own FFI version or an older one, and they must be compared beforehand: a
refused handler makes every later JAX call on its platform fail.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import re
from typing import Any

import jax

from jax_na.kernels import devices, installation
from jax_na.kernels.platforms import CPU, CUDA, PLATFORMS, Platform


def runtime_ffi_version() -> tuple[int, int]:
    """The FFI version of the installed jaxlib; (-1, -1) where it cannot be read."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    found = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    major, minor = (int(match[1]) if match else -1 for match in found)
    return major, minor


def version_refusal(built: tuple[int, int], runtime: tuple[int, int]) -> str | None:
    """Why handlers built for one FFI version cannot be registered with another, None if they can."""
    if built[0] == runtime[0] and built[1] <= runtime[1]:
        return None
    (a, b), (c, d) = built, runtime
    return f"the kernels were built for XLA FFI {a}.{b}, the installed jaxlib has {c}.{d}: update jaxlib"


def _register(platform: Platform) -> str | None:
    """Registers all handlers of a platform's kernels, also without a device; the reason if it cannot."""
    if importlib.util.find_spec(platform.module) is None:
        if platform.name == CPU:
            installation.warn_of_hidden_kernels()
        return installation.NOT_BUILT[platform.name]
    try:
        module = importlib.import_module(platform.module)
    except ImportError as error:
        if platform.name == CPU:  # where there are kernels, nothing takes their place unasked
            raise
        return f"the {platform.name.upper()} kernels do not load: {error}"
    reason = version_refusal(tuple(module.ffi_api_version()), runtime_ffi_version())
    if reason is None:
        for name, handler in module.handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform=platform.ffi_name)
        TARGETS[platform.name] = frozenset(module.handlers())
    return reason


TARGETS: dict[str, frozenset[str]] = {}  # platform -> names of its registered kernels
REFUSED = {name: _register(platform) for name, platform in PLATFORMS.items()}  # -> why it has none


def binding(platform: str) -> Any:
    """The module with the kernels of a platform."""
    return importlib.import_module(PLATFORMS[platform].module)


def refusal(platform: str) -> str | None:
    """Why no kernel runs on a platform, as far as it can be known when compiling for it."""
    if platform == CUDA and platform in TARGETS:
        return devices.cuda_refusal(architectures())
    return REFUSED.get(platform)


def architectures() -> list[str]:
    """What the CUDA kernels were compiled for, see `devices.runs_on`."""
    return list(binding(CUDA).architectures())

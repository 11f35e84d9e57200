# SPDX-License-Identifier: Apache-2.0
"""The devices that JAX has here, and what runs on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from jax_na.kernels.platforms import CUDA


def platform_of(backend: str | None = None) -> str:
    """What JAX lowers for with a backend, by default with the default one: "cpu", "cuda", "tpu", .."""
    name = backend or jax.default_backend()
    return CUDA if name == "gpu" else name


def cuda_devices() -> Sequence[Any]:
    """The CUDA devices of this process; none without a GPU, its driver, or JAX's plugin for it."""
    try:
        return tuple(jax.local_devices(backend=CUDA))
    except RuntimeError:
        return ()


def cuda_kind() -> str:
    """What the first CUDA device is called, "unknown" if there is none."""
    devices = cuda_devices()
    return str(devices[0].device_kind) if devices else "unknown"


def absence(capability: str | None) -> str | None:
    """Why a kernel for GPUs of a compute capability, like "9.0", runs on no device here, as far as is known.

    None if it does, or if it is for all devices: a capability of None.
    """
    found = [str(getattr(device, "compute_capability", "")) for device in cuda_devices()]
    if capability is None or (found and all(name == capability for name in found)):
        return None
    return f"it takes a GPU of compute capability {capability}"


def cuda_refusal(architectures: Sequence[str]) -> str | None:
    """Why code compiled for these architectures runs on no CUDA device here, as far as is known."""
    found = [getattr(device, "compute_capability", None) for device in cuda_devices()]
    known = [str(capability) for capability in found if capability]
    if len(known) < len(found) or not known or any(runs_on(c, architectures) for c in known):
        return None
    return f"it was compiled for {', '.join(architectures)}, this GPU has compute capability {known[0]}"


def runs_on(capability: str, architectures: Sequence[str]) -> bool:
    """Whether a GPU of compute capability "9.0" can run one of these: "80", "90a", "100f", "80-virtual"."""
    major, minor = map(int, capability.split("."))
    for name in architectures:
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-virtual)?", name)
        if match is None:
            return True  # "native", "all": what that was is not known
        of = int(match[1]), int(match[2])
        same_generation = major == of[0] and minor >= of[1]
        if match[3]:
            runs = of == (major, minor) or (match[3] == "f" and same_generation)
        else:
            runs = (major, minor) >= of if match[4] else same_generation
        if runs:
            return True
    return False

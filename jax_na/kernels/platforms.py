# SPDX-License-Identifier: Apache-2.0
"""The platforms that have kernels: what JAX and XLA call them, and where their kernels are."""

from __future__ import annotations

from typing import NamedTuple


class Platform(NamedTuple):
    """A platform with kernels."""

    name: str  # that JAX lowers for
    ffi_name: str  # that kernels are registered under
    module: str  # of its kernels
    bias_elements: int  # at most so many in all partial sums of a bias' gradient
    bias_parts: int  # at most so many partial sums


CPU, CUDA = "cpu", "cuda"
PLATFORMS = {
    CPU: Platform(CPU, "cpu", "jax_na._cpu", bias_elements=0, bias_parts=16),
    CUDA: Platform(CUDA, "CUDA", "jax_na._cuda", bias_elements=2**22, bias_parts=64),
}

# SPDX-License-Identifier: Apache-2.0
"""The platforms that have kernels: what JAX and XLA call them, and where their kernels are."""

from __future__ import annotations

from typing import NamedTuple

CPU, CUDA = "cpu", "cuda"


class Platform(NamedTuple):
    """A platform with kernels."""

    name: str  # that JAX lowers for
    ffi_name: str  # that kernels are registered under
    module: str  # of its kernels
    most_parts: int  # partial sums of the gradient of a bias: written in parallel, added in a fixed order
    most_elements: int | None  # of all of them together, as far as there is more than one

    def bias_parts(self, elements: int) -> int:
        """How many partial sums there are of the gradient of a bias with so many elements."""
        if self.most_elements is None:
            return self.most_parts
        return max(1, min(self.most_parts, self.most_elements // elements))


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(CPU, "cpu", "jax_na._cpu", 16, None),
        Platform(CUDA, "CUDA", "jax_na._cuda", 64, 2**22),
    )
}

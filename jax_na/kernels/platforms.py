# SPDX-License-Identifier: Apache-2.0
"""The platforms that have kernels: what JAX and XLA call them, and where their kernels are."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax_na.neighborhood import Shape

CPU, CUDA = "cpu", "cuda"


class Platform(NamedTuple):
    """A platform with kernels.

    The gradient of a bias comes as partial sums: written in parallel, added in a fixed order.
    """

    name: str  # that JAX lowers for
    ffi_name: str  # that kernels are registered under
    module: str  # of its kernels
    fewest_parts: int  # partial sums; there are so many, or a multiple
    workers: int = 0  # threads or warps that are busy together and add to one each, of all heads
    most_elements: int = 0  # of all partial sums, as far as there are more than the fewest
    part_queries: int = 1  # that as many workers as there are fewest parts take at once

    def bias_parts(self, table: Shape, queries: int) -> int:
        """How many partial sums there are of the gradient of a bias.

        `table` is its shape, [heads, ...]; `queries` those of a head in all of the batch, 0 if not known.
        """
        most = min(self.workers // table[0], self.most_elements // math.prod(table)) // self.fewest_parts
        if queries:
            most = min(most, -(-queries // self.part_queries))
        return self.fewest_parts * max(1, most)


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(CPU, "cpu", "jax_na._cpu", 16),
        # A part is the table of a warp, and a block has up to four warps, with 16 queries each at a time. On
        # 132 multiprocessors there are up to 2000 at once: of twice as many, the last ones end together.
        # 16 MiB of partial sums are added in little time.
        Platform(CUDA, "CUDA", "jax_na._cuda", 4, 4096, 2**22, 64),
    )
}

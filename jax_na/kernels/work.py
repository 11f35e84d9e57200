# SPDX-License-Identifier: Apache-2.0
"""What a tiling of a kernel does, useful or not, as exact counts for one head of one image."""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """Counts of one pass.

    `tiles` of tokens that stay, `pairs` of a query with a key that they compute, `streamed` tokens that they
    read for it, and the share of the pairs that need no mask; None for a kernel that does not skip masks.
    """

    tiles: int
    pairs: int
    streamed: int
    unmasked: float | None

# SPDX-License-Identifier: Apache-2.0
"""The arrays of the kernels by name: what every target takes, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORDER = (
    "query", "key", "value", "weights", "x", "y", "scores", "offsets", "out", "lse",
    "delta", "dout", "rpb", "token_key", "token_value",
)  # fmt: skip


def present(operands: Mapping[str, Any]) -> dict[str, Any]:
    """The operands that a call has, in the order in which it passes them."""
    return {name: operands[name] for name in ORDER if operands.get(name) is not None}

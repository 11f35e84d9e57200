# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention as Flax layers: linen here, its nnx twin in `flax_layers.nnx`.

`import flax_layers` loads linen only; `flax_layers.nnx` is loaded when it is first used.
"""

import importlib
from types import ModuleType

from flax_layers.attention import NeighborhoodAttention

__all__ = ["NeighborhoodAttention", "nnx"]


def __getattr__(name: str) -> ModuleType:
    if name == "nnx":
        return importlib.import_module("flax_layers.nnx")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention for JAX: attention in which every query sees its nearest keys."""

from importlib.metadata import version as _version

from jax_na.attention import merge_attentions
from jax_na.functional import na1d, na2d, na3d, neighborhood_attention, neighborhood_av, neighborhood_qk
from jax_na.implementations import implementations
from jax_na.neighborhood import Neighborhood

__version__ = _version("jax-na")

__all__ = [
    "Neighborhood",
    "implementations",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "neighborhood_av",
    "neighborhood_qk",
]

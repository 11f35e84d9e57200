# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention for JAX: attention in which every query sees its nearest keys."""

from importlib.metadata import version as _version

try:
    from jax_na import _cpu  # noqa: F401
except ImportError as error:
    raise ImportError(
        "jax_na has no compiled kernels here. In a checkout, Python finds the source folder before the "
        "installed package: install it (pip install .) and run from another folder, or install it in place "
        "(pip install -e .)"
    ) from error

from jax_na.api.attention import na1d, na2d, na3d, neighborhood_attention
from jax_na.api.attention_fn import attention_fn
from jax_na.api.availability import export_safety_checks, implementations
from jax_na.api.halves import neighborhood_av, neighborhood_qk
from jax_na.api.merge import merge_attentions
from jax_na.api.regions import region_attention
from jax_na.api.sharded import sharded_neighborhood_attention
from jax_na.neighborhood import Neighborhood
from jax_na.tools.plot import plot_window

__version__ = _version("jax-na")

__all__ = [
    "Neighborhood",
    "attention_fn",
    "export_safety_checks",
    "implementations",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "neighborhood_av",
    "neighborhood_qk",
    "plot_window",
    "region_attention",
    "sharded_neighborhood_attention",
]

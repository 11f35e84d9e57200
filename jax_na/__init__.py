# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention for JAX: attention in which every query sees its nearest keys."""

import sys as _sys

if _sys.version_info < (3, 11):  # noqa: UP036 - pip says so too, but is not asked about a folder on the path
    raise ImportError(
        f"jax_na needs Python 3.11 or later, this is Python {_sys.version.split()[0]} ({_sys.executable})"
    )

from jax_na.api.attention import na1d, na2d, na3d, neighborhood_attention
from jax_na.api.attention_fn import attention_fn
from jax_na.api.availability import export_safety_checks, implementations
from jax_na.api.halves import neighborhood_av, neighborhood_qk
from jax_na.api.merge import merge_attentions
from jax_na.api.regions import region_attention
from jax_na.api.sharded import sharded_neighborhood_attention
from jax_na.kernels import installation as _installation
from jax_na.kernels.tuning import share_tuning, use_tuning
from jax_na.neighborhood import Neighborhood
from jax_na.tools.plot import plot_attention, plot_window

__version__ = _installation.version()

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
    "plot_attention",
    "plot_window",
    "region_attention",
    "sharded_neighborhood_attention",
    "share_tuning",
    "use_tuning",
]

# SPDX-License-Identifier: Apache-2.0
"""What else computes attention in JAX: to compare with, in the profiler and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jax_na.tools import profiler
from jax_na.tools.problems import Problem
from jax_na.tools.profiler import Attend

GB = 1 << 30
MOST_SCORES = {"cpu": 1.5 * GB, "gpu": 12 * GB}  # bytes of the scores of all pairs that are worth a try


class Peer(NamedTuple):
    """An attention that is not this library's.

    `obstacle` says why it cannot compute a problem on a platform; `attention` gives the function, and what it
    takes besides the inputs. One that is not exact computes attention of every token to all.
    """

    name: str
    about: str
    is_exact: bool
    obstacle: Callable[[Problem, str], str | None]
    attention: Callable[[Problem], tuple[Attend, Sequence[Any]]]


def all_tokens(problem: Problem, implementation: str) -> Attend:
    """Attention of all pairs of tokens as jax.nn does it, with a mask if one is given."""
    p = problem

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, *mask: jax.Array) -> tuple[jax.Array, None]:
        rows = (x.reshape(p.batch, p.tokens, *x.shape[-2:]) for x in (q, k, v))
        chosen: Any = {"mask": mask[0] if mask else None, "implementation": implementation}
        out = jax.nn.dot_product_attention(*rows, scale=p.softmax_scale, **chosen)
        return out.reshape(p.out_shape), None

    return attend


def mask(problem: Problem) -> Any:
    """Which pairs a mask lets through, `[1, 1, tokens, tokens]`."""
    seen = profiler.neighborhood(problem).mask(problem.spatial)
    return seen.reshape(1, 1, problem.tokens, problem.tokens)


def _dense_obstacle(problem: Problem, platform: str) -> str | None:
    if problem.rpb:
        return "this peer is written without a positional bias"
    size = 4 * problem.pairs
    if size > MOST_SCORES.get(platform, MOST_SCORES["gpu"]):
        return f"its scores of all pairs would take {size / GB:.1f} GB"
    return None


def _cudnn_obstacle(problem: Problem, platform: str) -> str | None:
    if platform != "gpu":
        return "cuDNN needs a GPU"
    if problem.dtype not in ("bfloat16", "float16") or problem.head_dim > 128:
        return "cuDNN takes 2-byte types and up to 128 features per head"
    return "this peer is written without a positional bias" if problem.rpb else None


PEERS = (
    Peer(
        "jax.nn",
        "jax.nn.dot_product_attention with a mask",
        True,
        _dense_obstacle,
        lambda problem: (all_tokens(problem, "xla"), [mask(problem)]),
    ),
    Peer(
        "cudnn, all tokens",
        "cuDNN through jax.nn, every token sees all",
        False,
        _cudnn_obstacle,
        lambda problem: (all_tokens(problem, "cudnn"), []),
    ),
)

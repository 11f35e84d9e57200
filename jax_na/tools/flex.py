# SPDX-License-Identifier: Apache-2.0
"""FlexAttention of PyTorch, where that is installed: a peer to compare with.

Queries, keys and values are handed over as it likes them best, [batch, heads, tokens, head_dim], in an order
of tokens in which tiles lie together: what these changes of layout cost is not counted. Nothing here needs
JAX, so that a Python without it can load this.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jax_na.tools.clock import Clock, QueueClock, WallClock
from jax_na.tools.problems import BACKWARD, FORWARD, Problem

ABOUT = "PyTorch: FlexAttention, compiled, with the windows as its block mask"
INPUTS = ("query", "key", "value")
LARGEST_MASK = 1 << 14  # tokens, on a CPU: there create_block_mask evaluates the mask of all pairs

# Best first: the tile of tokens that lie together in memory, or None, and the block of the mask, which has as
# many tokens as a tile.
Layout = tuple[tuple[int, ...] | None, int]
LAYOUTS: dict[str, dict[int, tuple[Layout, ...]]] = {
    "cpu": {
        1: ((None, 128), (None, 64), (None, 32)),
        2: (((8, 8), 64), (None, 128), ((4, 8), 32)),
        3: (((4, 4, 4), 64), (None, 128), ((2, 4, 4), 32)),
    },
    # Blocks are FlexAttention's own choice on GPUs.
    "gpu": {1: (((128,), 128),), 2: (((8, 16), 128),), 3: (((4, 4, 8), 128),)},
}
Call = Callable[[], Sequence[Any]]
Table = npt.NDArray[Any]
Bounds = Sequence[Table]  # of the windows, int32 [length, 2] per axis


@functools.cache
def torch() -> Any:
    """PyTorch, which is imported when the first problem is prepared, and set up to time many shapes."""
    module = importlib.import_module("torch")
    importlib.import_module("torch.nn.attention.flex_attention")
    module._dynamo.config.recompile_limit = 1000
    functorch: Any = importlib.import_module("torch._functorch.config")
    # A backward pass is timed many times over one forward pass, whose results must stay.
    functorch.donated_buffer = False
    return module


def obstacle(problem: Problem, platform: str) -> str | None:
    """Why it cannot compute a problem on "cpu" or "gpu", None if it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    if platform not in LAYOUTS:
        return "this peer is for CPUs and GPUs"
    if problem.rpb:
        return "this peer is written without a positional bias"
    if platform == "gpu":
        return None if torch().cuda.is_available() else "PyTorch sees no GPU"
    if problem.needs_gradients:
        return "FlexAttention has no backward pass on the CPU"
    if problem.tokens > LARGEST_MASK:
        return f"the mask of all pairs of {problem.tokens} tokens is too large to build"
    return None


def coordinates(problem: Problem) -> Table:
    """Of all tokens, [tokens, rank]."""
    return np.stack(np.unravel_index(np.arange(problem.tokens), problem.spatial), -1)


def order(problem: Problem, tile: Sequence[int] | None) -> Table:
    """The tokens in an order in which those of a dilation group and a tile are neighbours."""
    x, d = coordinates(problem), np.array(problem.dilation)
    group, position = x % d, x // d
    sizes = np.array(tile or (max(problem.spatial),) * problem.rank)
    return np.lexsort(np.concatenate([group, position // sizes, position % sizes], 1).T[::-1])


def visibility(problem: Problem, bounds: Bounds, tokens: Table, device: str) -> Callable[..., Any]:
    """FlexAttention's function of (batch, head, query, key): whether the query sees the key."""

    def line(values: Table) -> Any:
        return torch().from_numpy(np.ascontiguousarray(values, np.int32)).to(device)

    places = coordinates(problem)[tokens].T
    windows = [table[x] for table, x in zip(bounds, places, strict=True)]
    axes = [
        (line(x), line(window[:, 0]), line(window[:, 1]), dilation)
        for x, window, dilation in zip(places, windows, problem.dilation, strict=True)
    ]

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        visible: Any = True
        for position, start, stop, dilation in axes:
            k, first = position[key], start[query]
            visible = (first <= k) & (k < stop[query]) & visible
            if dilation > 1:
                visible = visible & (k % dilation == first % dilation)
        return visible

    return sees


def compiled(problem: Problem, bounds: Bounds, tokens: Table, block: int, device: str) -> Callable[..., Any]:
    """The attention of query, key and value [batch, heads, tokens, features], with tokens in this order."""
    flex = torch().nn.attention.flex_attention
    torch()._dynamo.reset()
    options: dict[str, Any] = {"device": device, "BLOCK_SIZE": block}
    if device == "cuda":
        torch().cuda.empty_cache()  # of the problem before
        options["_compile"] = True
    sees = visibility(problem, bounds, tokens, device)
    mask = flex.create_block_mask(sees, None, None, problem.tokens, problem.tokens, **options)
    attend = torch().compile(flex.flex_attention, dynamic=False)
    return functools.partial(attend, block_mask=mask, **attention_options(problem))


def attention_options(problem: Problem) -> dict[str, Any]:
    """What PyTorch's attentions call scale and grouped heads."""
    return {"scale": problem.softmax_scale, "enable_gqa": problem.kv_heads != problem.heads}


def call(problem: Problem, attend: Callable[..., Any], inputs: Sequence[Any], dout: Any) -> Call:
    """What computes the direction of a problem once: (out,), the gradients of the inputs, or both."""

    def forward() -> Sequence[Any]:
        with torch().no_grad():
            return (attend(*inputs),)

    def both() -> Sequence[Any]:
        out = attend(*inputs)
        return (out.detach(), *torch().autograd.grad(out, inputs, dout))

    if problem.direction == FORWARD:
        return forward
    if problem.direction != BACKWARD:
        return both
    saved = attend(*inputs)
    return functools.partial(torch().autograd.grad, saved, inputs, dout, retain_graph=True)


def gpu_clock(call: Call) -> QueueClock:
    """The call as it is or, where that is possible and faster, as a CUDA graph: enqueueing costs nothing."""
    wait = lambda _: torch().cuda.synchronize()  # noqa: E731
    plain = QueueClock(call, wait)
    try:
        replayed = QueueClock(_graphed(call), wait)
    except RuntimeError:  # it cannot be captured
        torch().cuda.synchronize()
        return plain
    return min(plain, replayed, key=lambda clock: clock.estimate)


def _graphed(call: Call) -> Callable[[], Any]:
    for _ in range(3):
        call()
    torch().cuda.synchronize()
    graph = torch().cuda.CUDAGraph()
    with torch().cuda.graph(graph):
        call()
    replay: Callable[[], Any] = graph.replay
    return replay


def clock(problem: Problem, bounds: Bounds, platform: str) -> Clock:
    """Compiles it for random inputs on "cpu" or "gpu", in its best layout."""
    device = "cuda" if platform == "gpu" else "cpu"
    tile, block = LAYOUTS[platform][problem.rank][0]
    attend = compiled(problem, bounds, order(problem, tile), block, device)
    *inputs, dout = (_random(problem, name, device) for name in (*INPUTS, "dout"))
    once = call(problem, attend, inputs, dout)
    return gpu_clock(once) if device == "cuda" else WallClock(once)


def _random(problem: Problem, name: str, device: str) -> Any:
    """An input, or the cotangent of the output."""
    *_, heads, features = problem.out_shape if name == "dout" else problem.shapes[name]
    x = torch().randn((problem.batch, heads, problem.tokens, features), device=device)
    return x.to(getattr(torch(), problem.dtype)).requires_grad_(name != "dout" and problem.needs_gradients)

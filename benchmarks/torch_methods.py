# SPDX-License-Identifier: Apache-2.0
"""What is measured in PyTorch, if it is installed: FlexAttention compiled, and attention over everything.

Inputs are handed over in the layout that PyTorch likes, [batch, heads, tokens, head_dim], and for
FlexAttention also in the best order of tokens: what these changes of layout cost is not counted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import check
import numpy as np
import torch
import torch._functorch.config
from method import CPU, GPU, Array, Case, Method, Prepared, coordinates, fastest, first_of, no_bias, order
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from jax_na.tools.clock import Clock, QueueClock
from jax_na.tools.problems import BACKWARD, FORWARD, Problem

if "OMP_NUM_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch._dynamo.config.recompile_limit = 1000
# A backward pass is timed many times over one forward pass, whose results must stay.
torch._functorch.config.donated_buffer = False
LARGEST_MASK = 1 << 14  # tokens, on a CPU: there create_block_mask evaluates the mask of all pairs
INPUTS = ("query", "key", "value")

# (tile of tokens that lie together in memory, or None; block of the mask, as many tokens as a tile)
Layout = tuple[tuple[int, ...] | None, int]
LAYOUTS: dict[str, dict[int, tuple[Layout, ...]]] = {
    CPU: {
        1: ((None, 128), (None, 64), (None, 32)),
        2: (((8, 8), 64), (None, 128), ((4, 8), 32)),
        3: (((4, 4, 4), 64), (None, 128), ((2, 4, 4), 32)),
    },
    # Blocks are FlexAttention's own choice on GPUs.
    GPU: {1: (((128,), 128),), 2: (((8, 16), 128),), 3: (((4, 4, 8), 128),)},
}
Call = Callable[[], Sequence[torch.Tensor]]


class Attention(Prepared):
    """A function of the inputs of a case, in an order of its tokens."""

    def __init__(self, case: Case, function: Any, order: Array, is_exact: bool = True) -> None:
        p = case.problem
        super().__init__(case, is_exact)
        self.order = order
        self.attend = functools.partial(function, scale=p.softmax_scale, enable_gqa=p.kv_heads != p.heads)
        self.random = torch.Generator("cuda").manual_seed(0) if case.device == GPU else None
        gradients = case.problem.needs_gradients
        self.inputs = [self._tensor(name).requires_grad_(gradients) for name in INPUTS]
        self.dout = self._tensor("dout")

    def _tensor(self, name: str) -> torch.Tensor:
        p = self.case.problem
        dtype = getattr(torch, p.dtype)
        if self.random is not None:
            *_, heads, features = p.out_shape if name == "dout" else p.shapes[name]
            shape = (p.batch, heads, p.tokens, features)
            return torch.randn(shape, device="cuda", generator=self.random).to(dtype)
        x = self.case.arrays[name]
        x = x.reshape(p.batch, p.tokens, *x.shape[-2:])[:, self.order]
        return torch.from_numpy(x).to(dtype).transpose(1, 2).contiguous()

    def call(self, problem: Problem) -> Call:
        def forward() -> Sequence[torch.Tensor]:
            with torch.no_grad():
                return (self.attend(*self.inputs),)

        def both() -> Sequence[torch.Tensor]:
            out = self.attend(*self.inputs)
            return (out.detach(), *torch.autograd.grad(out, self.inputs, self.dout))

        if problem.direction == FORWARD:
            return forward
        if problem.direction != BACKWARD:
            return both
        saved = self.attend(*self.inputs)
        return lambda: torch.autograd.grad(saved, self.inputs, self.dout, retain_graph=True)

    def gpu_clock(self, problem: Problem) -> Clock:
        return gpu_clock(self.call(problem))

    def to_numpy(self, x: torch.Tensor) -> Array:
        """[..., heads, tokens, features] as [..., *spatial, heads, features], tokens in their own order."""
        array: Array = x.detach().float().cpu().transpose(-2, -3).numpy()
        array = array.take(np.argsort(self.order), axis=-3)
        return array.reshape(*array.shape[:-3], *self.case.problem.spatial, *array.shape[-2:])

    def verify(self) -> dict[str, float]:
        """All results on a CPU, out and dquery of a few tokens on a GPU."""
        case = self.case
        results = dict(zip(case.results, self.call(case.problem)(), strict=True))
        if case.device == CPU:
            return check.whole({name: self.to_numpy(x) for name, x in results.items()}, case.arrays)
        tensors = dict(zip(INPUTS, self.inputs, strict=True)) | {"out": results["out"]}
        if case.problem.needs_gradients:
            tensors |= {"dout": self.dout, "dquery": results["dquery"]}

        def planes(batch: int, kv_head: int) -> check.Planes:
            heads = {name: check.heads(case.problem, name, kv_head) for name in tensors}
            return {name: self.to_numpy(x[batch, heads[name]]) for name, x in tensors.items()}

        return check.sampled(case.problem, case.bounds, planes)


def gpu_clock(call: Call) -> QueueClock:
    """The call as it is or, where that is possible and faster, as a CUDA graph: enqueueing costs nothing."""
    wait = lambda _: torch.cuda.synchronize()  # noqa: E731
    plain = QueueClock(call, wait)
    try:
        replayed = QueueClock(_graphed(call), wait)
    except RuntimeError:  # it cannot be captured
        torch.cuda.synchronize()
        return plain
    return min(plain, replayed, key=lambda clock: clock.estimate)


def _graphed(call: Call) -> Callable[[], Any]:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], Any] = graph.replay
    return replay


# FlexAttention


def _mask(case: Case, order: Array) -> Callable[..., torch.Tensor]:
    """FlexAttention's function of (batch, head, query, key): whether the query sees the key."""
    device = "cuda" if case.device == GPU else "cpu"

    def line(values: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int32)).to(device)

    keys = coordinates(case.problem)[order].T
    windows = [bounds[x] for bounds, x in zip(case.bounds, keys, strict=True)]
    axes = [
        (line(x), line(window[:, 0]), line(window[:, 1]), dilation)
        for x, window, dilation in zip(keys, windows, case.problem.dilation, strict=True)
    ]

    def sees(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        visible: Any = True
        for position, start, stop, dilation in axes:
            k, first = position[key], start[query]
            visible = (first <= k) & (k < stop[query]) & visible
            if dilation > 1:
                visible = visible & (k % dilation == first % dilation)
        found: torch.Tensor = visible
        return found

    return sees


def _flex(case: Case) -> Prepared:
    p = case.problem
    compiler = {"device": "cuda", "_compile": True} if case.device == GPU else {"device": "cpu"}

    def build(tile: Sequence[int] | None, block: int) -> Prepared:
        torch._dynamo.reset()
        torch.cuda.empty_cache()  # of the case before
        tokens = order(p, tile)
        size: Any = {"BLOCK_SIZE": block, **compiler}
        mask = create_block_mask(_mask(case, tokens), None, None, p.tokens, p.tokens, **size)
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        return Attention(case, functools.partial(compiled, block_mask=mask), tokens)

    candidates = {}
    for tile, block in LAYOUTS[case.device][p.rank]:
        together = f", tokens by {'x'.join(map(str, tile))}" if tile else ""
        candidates[f"mask blocks of {block}{together}"] = functools.partial(build, tile, block)
    return fastest(case, candidates)


def _flex_obstacle(case: Case) -> str | None:
    p, on_cpu = case.problem, case.device == CPU
    many = f"the mask of all pairs of {p.tokens} tokens is too large to build"
    return first_of(
        no_bias(case),
        None if on_cpu or torch.cuda.is_available() else "PyTorch sees no GPU",
        "FlexAttention has no backward pass on the CPU" if on_cpu and p.needs_gradients else None,
        many if on_cpu and p.tokens > LARGEST_MASK else None,
    )


def _everything(case: Case) -> Prepared:
    tokens = np.arange(case.problem.tokens)
    return Attention(case, scaled_dot_product_attention, tokens, is_exact=False)


METHODS = (
    Method("torch-flex", "PyTorch: FlexAttention, compiled", _flex_obstacle, _flex),
    Method("torch-sdpa-all", "PyTorch: self attention over all tokens", no_bias, _everything, (CPU,)),
)

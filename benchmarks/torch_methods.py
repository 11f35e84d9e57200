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
from method import (
    CPU,
    GPU,
    SGEMM_FLOPS,
    SGEMM_SIZE,
    Array,
    Case,
    Method,
    Prepared,
    fastest,
    first_of,
    no_bias,
    no_obstacle,
)
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from jax_na.tools.clock import Clock, QueueClock, WallClock
from jax_na.tools.problems import BACKWARD, FORWARD, Problem

if "OMP_NUM_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch._dynamo.config.recompile_limit = 1000
# A backward pass is timed many times over one forward pass, whose results must stay.
torch._functorch.config.donated_buffer = False
LARGEST_MASK = 1 << 14  # tokens, on a CPU: there create_block_mask evaluates the mask of all pairs

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
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Call = Callable[[], Sequence[torch.Tensor]]


class Operands:
    """The inputs of a case in an order of its tokens, and what is computed from them."""

    def __init__(self, case: Case, attend: Attend, order: Array) -> None:
        self.case, self.attend, self.order = case, attend, order
        self.random = torch.Generator("cuda").manual_seed(0) if case.device == GPU else None
        self.inputs = [
            self._tensor(name).requires_grad_(case.gradients) for name in ("query", "key", "value")
        ]
        self.dout = self._tensor("dout")

    def _tensor(self, name: str) -> torch.Tensor:
        p = self.case.problem
        dtype = getattr(torch, p.dtype)
        if self.random is not None:
            heads, features = ({**p.shapes, "dout": p.out_shape}[name])[-2:]
            shape = (p.batch, heads, p.tokens, features)
            return torch.randn(shape, device="cuda", generator=self.random).to(dtype)
        x = self.case.arrays[name]
        x = x.reshape(p.batch, p.tokens, *x.shape[-2:])[:, self.order]
        return torch.from_numpy(x).to(dtype).transpose(1, 2).contiguous()

    def call(self, problem: Problem) -> Call:
        """What computes the direction of a problem once."""

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

    def to_numpy(self, x: torch.Tensor) -> Array:
        """[batch, *spatial, heads, features] as float32, tokens in their own order."""
        p = self.case.problem
        array: Array = x.detach().float().cpu().transpose(1, 2).numpy()[:, np.argsort(self.order)]
        return array.reshape(p.batch, *p.spatial, *array.shape[-2:])

    def errors(self) -> dict[str, float]:
        """All results on a CPU, out and dquery of a few tokens on a GPU."""
        case, names = self.case, self.case.results
        results = self.call(case.problem)()
        if case.device == CPU:
            found = {name: self.to_numpy(x) for name, x in zip(names, results, strict=True)}
            return check.whole(found, case.arrays)
        tensors = dict(zip(("query", "key", "value"), self.inputs, strict=True))
        tensors |= dict(zip(("out", "dquery"), results, strict=False))
        if case.gradients:
            tensors["dout"] = self.dout
        return check.sampled(case.problem, case.bounds, functools.partial(self._planes, tensors))

    def _planes(self, tensors: dict[str, torch.Tensor], batch: int, kv_head: int) -> check.Planes:
        p, back, found = self.case.problem, np.argsort(self.order), {}
        for name, x in tensors.items():
            heads = 1 if name in ("key", "value") else p.group_size
            plane = x.detach()[batch, kv_head * heads : (kv_head + 1) * heads].float().cpu().numpy()
            found[name] = plane.transpose(1, 0, 2)[back].reshape(*p.spatial, heads, -1)
        return found


def _prepare(
    case: Case, attend: Attend, order: Array, flops: Callable[[Problem], float] | None = None
) -> Prepared:
    operands = Operands(case, attend, order)

    def clock(problem: Problem) -> Clock:
        call = operands.call(problem)
        return WallClock(call) if case.device == CPU else gpu_clock(call)

    return Prepared(operands.call, clock, operands.errors if flops is None else dict, flops=flops)


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


def _coordinates(problem: Problem) -> Array:
    """[tokens, rank]"""
    return np.stack(np.unravel_index(np.arange(problem.tokens), problem.spatial), -1)


def _order(problem: Problem, tile: Sequence[int] | None) -> Array:
    """The tokens in an order in which those of a dilation group and a tile are neighbours."""
    x, d = _coordinates(problem), np.array(problem.dilation)
    group, position = x % d, x // d
    sizes = np.array(tile or (max(problem.spatial),) * problem.rank)
    return np.lexsort(np.concatenate([group, position // sizes, position % sizes], 1).T[::-1])


def _mask(case: Case, order: Array) -> Callable[..., torch.Tensor]:
    """FlexAttention's function of (batch, head, query, key): whether the query sees the key."""
    x = _coordinates(case.problem)[order]
    device = "cuda" if case.device == GPU else "cpu"

    def line(values: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int32)).to(device)

    keys = [line(x[:, a]) for a in range(case.problem.rank)]
    start = [line(b[x[:, a], 0]) for a, b in enumerate(case.bounds)]
    stop = [line(b[x[:, a], 1]) for a, b in enumerate(case.bounds)]
    dilation = case.problem.dilation

    def sees(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        visible = None
        for a, d in enumerate(dilation):
            k, first = keys[a][key], start[a][query]
            on_axis = (first <= k) & (k < stop[a][query])
            if d > 1:
                on_axis = on_axis & (k % d == first % d)
            visible = on_axis if visible is None else visible & on_axis
        assert visible is not None
        return visible

    return sees


def _flex(case: Case) -> Prepared:
    p, on_gpu = case.problem, case.device == GPU

    def build(tile: Sequence[int] | None, block: int) -> Prepared:
        torch._dynamo.reset()
        torch.cuda.empty_cache()  # of the case before
        order = _order(p, tile)
        options: dict[str, Any] = {"device": "cuda", "_compile": True} if on_gpu else {"device": "cpu"}
        sees = _mask(case, order)
        mask = create_block_mask(sees, None, None, p.tokens, p.tokens, BLOCK_SIZE=block, **options)
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        grouped = p.kv_heads != p.heads
        attend = functools.partial(compiled, block_mask=mask, scale=p.softmax_scale, enable_gqa=grouped)
        return _prepare(case, attend, order)

    candidates = {}
    for tile, block in LAYOUTS[case.device][p.rank]:
        together = f", tokens by {'x'.join(map(str, tile))}" if tile else ""
        candidates[f"mask blocks of {block}{together}"] = functools.partial(build, tile, block)
    return fastest(case, candidates)


def _flex_obstacle(case: Case) -> str | None:
    many = f"the mask of all pairs of {case.problem.tokens} tokens is too large to build"
    on_cpu = case.device == CPU
    return first_of(
        no_bias(case),
        "FlexAttention has no backward pass on the CPU" if on_cpu and case.gradients else None,
        many if on_cpu and case.problem.tokens > LARGEST_MASK else None,
    )


# Attention over everything, and a yardstick


def _everything(case: Case) -> Prepared:
    p = case.problem
    grouped = p.kv_heads != p.heads
    attend = functools.partial(scaled_dot_product_attention, scale=p.softmax_scale, enable_gqa=grouped)
    return _prepare(case, attend, np.arange(p.tokens), lambda problem: problem.dense_flops)


def _sgemm(case: Case) -> Prepared:
    x = torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    out = torch.empty_like(x)

    def call() -> Sequence[torch.Tensor]:
        return (torch.mm(x, x, out=out),)

    call()
    return Prepared(
        lambda problem: call, lambda problem: WallClock(call), dict, flops=lambda problem: SGEMM_FLOPS
    )


METHODS = (
    Method("torch-flex", "PyTorch: FlexAttention, compiled", _flex_obstacle, _flex),
    Method("torch-sdpa-all", "PyTorch: self attention over all tokens", no_bias, _everything, (CPU,)),
    Method("torch-sgemm", f"{SGEMM_SIZE}^3 float32 matrix product in PyTorch", no_obstacle, _sgemm, (CPU,)),
)


def versions() -> dict[str, str]:
    """Of PyTorch."""
    return {"torch": str(torch.__version__)}


def instruction_set() -> str:
    """The kernels that PyTorch takes on this CPU."""
    return str(torch.backends.cpu.get_cpu_capability())

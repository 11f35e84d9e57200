# SPDX-License-Identifier: Apache-2.0
"""FlexAttention on a GPU, in a process of its own: python gpu_torch.py SPEC[,SPEC...] DTYPE SECONDS

Prints a JSON object per measurement. The mask of a neighborhood is its block mask; tokens are handed over in
the layout and the order that suit it best, and what that costs is not counted.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # of JAX only the windows are needed

import gpu_check
import numpy as np
import torch
import torch._functorch.config
from gpu_timing import Timing, time_calls
from specs import BY_NAME, Spec
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import jax_na

# A backward pass is timed many times over one forward pass, whose results must stay.
torch._functorch.config.donated_buffer = False

BLOCK = 128  # of the mask: FlexAttention's own choice on GPUs
TILES = {1: (128,), 2: (8, 16), 3: (4, 4, 8)}  # tokens that lie together, as many as a block
MOST_FLOPS = 6e13  # useful ones of a forward pass that is worth the wait
NAME, ABOUT = "torch-flex", "PyTorch: FlexAttention, compiled, with the neighborhood as its block mask"


class Flex:
    """A spec with random inputs [batch, heads, tokens, head_dim], tokens in the order of tiles."""

    def __init__(self, spec: Spec, dtype: str) -> None:
        self.spec = spec
        self.bounds = jax_na.Neighborhood(**spec.neighborhood).bounds(spec.spatial)
        self.order = self._order()
        generator = torch.Generator("cuda").manual_seed(0)

        def tensor(heads: int) -> torch.Tensor:
            shape = (spec.batch, heads, spec.tokens, spec.head_dim)
            x = torch.randn(shape, device="cuda", generator=generator)
            return x.to(getattr(torch, dtype)).requires_grad_()

        self.inputs = [tensor(heads) for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        self.dout = tensor(spec.heads).detach()

    @functools.cached_property
    def _coordinates(self) -> np.ndarray:
        return np.stack(np.unravel_index(np.arange(self.spec.tokens), self.spec.spatial), -1)

    def _order(self) -> np.ndarray:
        """Tokens of a dilation group and a tile are neighbours."""
        d = np.array(self.spec.dilation)
        group, position = self._coordinates % d, self._coordinates // d
        sizes = np.array(TILES[self.spec.rank])
        return np.lexsort(np.concatenate([group, position // sizes, position % sizes], 1).T[::-1])

    def sees(self) -> Callable[..., torch.Tensor]:
        """FlexAttention's function of (batch, head, query, key)."""
        x = self._coordinates[self.order]
        on_device = lambda a: torch.from_numpy(np.ascontiguousarray(a, np.int32)).cuda()  # noqa: E731
        keys = [on_device(x[:, a]) for a in range(self.spec.rank)]
        starts = [on_device(b[x[:, a], 0]) for a, b in enumerate(self.bounds)]
        stops = [on_device(b[x[:, a], 1]) for a, b in enumerate(self.bounds)]
        dilation = self.spec.dilation

        def mask(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
            visible = None
            for a, d in enumerate(dilation):
                k, first = keys[a][key], starts[a][query]
                on_axis = (first <= k) & (k < stops[a][query])
                if d > 1:
                    on_axis = on_axis & (k % d == first % d)
                visible = on_axis if visible is None else visible & on_axis
            assert visible is not None
            return visible

        return mask

    def compile(self) -> Callable[..., torch.Tensor]:
        n, spec = self.spec.tokens, self.spec
        mask = create_block_mask(
            self.sees(), None, None, n, n, device="cuda", BLOCK_SIZE=BLOCK, _compile=True
        )
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        grouped = spec.kv_heads != spec.heads
        return functools.partial(compiled, block_mask=mask, scale=spec.softmax_scale, enable_gqa=grouped)

    def calls(self, attend: Callable[..., torch.Tensor]) -> dict[str, Callable[[], Any]]:
        """What is measured, by direction."""

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return attend(*self.inputs)

        def both() -> Sequence[torch.Tensor]:
            out = attend(*self.inputs)
            return (out, *torch.autograd.grad(out, self.inputs, self.dout))

        saved = attend(*self.inputs)

        def backward() -> Sequence[torch.Tensor]:
            return torch.autograd.grad(saved, self.inputs, self.dout, retain_graph=True)

        return {"forward": forward, "backward": backward, "forward+backward": both}

    def errors(self, results: Sequence[torch.Tensor]) -> dict[str, float]:
        """Of out and dquery on a few tokens."""
        names = ("query", "key", "value", "dout", "out", "dquery")
        arrays = dict(zip(names, (*self.inputs, self.dout, *results[:2]), strict=True))
        back, worst = np.argsort(self.order), {}
        for batch, kv_head in gpu_check.groups(self.spec):
            planes = {}
            for name, x in arrays.items():
                heads = 1 if name in ("key", "value") else self.spec.heads // self.spec.kv_heads
                plane = x.detach()[batch, kv_head * heads : (kv_head + 1) * heads].float().cpu().numpy()
                planes[name] = plane.transpose(1, 0, 2)[back].reshape(*self.spec.spatial, heads, -1)
            for name, error in gpu_check.errors(gpu_check.Sample(self.spec, self.bounds, planes)).items():
                worst[name] = max(worst.get(name, 0.0), error)
        return worst


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph, so that enqueueing it costs next to nothing."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def fastest(call: Callable[[], Any], budget: float) -> Timing:
    """As it is, and as a graph where that is possible."""
    wait = lambda _: torch.cuda.synchronize()  # noqa: E731
    plain = time_calls(call, budget, wait)
    try:
        replayed = time_calls(graphed(call), budget, wait)
    except RuntimeError:  # it cannot be captured
        torch.cuda.synchronize()
        return plain
    return min(plain, replayed, key=lambda timing: timing.median)


def run(spec: Spec, dtype: str, seconds: float) -> None:
    if spec.rpb:
        say(spec, reason="written without a positional bias")
        return
    problem = Flex(spec, dtype)
    start = time.perf_counter()
    calls = problem.calls(problem.compile())
    found = problem.errors(calls["forward+backward"]())
    setup = time.perf_counter() - start
    reason = gpu_check.wrong(found, dtype)
    if reason is not None:
        say(spec, reason=reason)
        return
    for direction, call in calls.items():
        timing = fastest(call, seconds)
        say(
            spec, direction=direction, samples=timing.samples, calls=timing.calls, errors=found, setup_s=setup
        )


def say(spec: Spec, **facts: Any) -> None:
    print(json.dumps({"spec": spec.name, **facts}), flush=True)


def main(names: str, dtype: str, seconds: str) -> None:
    print(json.dumps({"versions": {"torch": torch.__version__}}), flush=True)
    for name in names.split(","):
        spec = BY_NAME[name]
        try:
            run(spec, dtype, float(seconds))
        except Exception as error:  # the driver reports it and goes on
            lines = str(error).strip().splitlines() or [""]
            say(spec, reason=f"it failed: {type(error).__name__}: {lines[0][:200]}")
        torch._dynamo.reset()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(*sys.argv[1:])

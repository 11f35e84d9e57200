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

import numpy as np
import torch
from method import SGEMM_SIZE, Case, Method, Prepared, fastest, first_of, no_bias
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch._dynamo.config.recompile_limit = 1000
LARGEST_MASK = 1 << 14  # tokens: create_block_mask evaluates the mask of all pairs

# (tile of tokens that lie together in memory, or None; block of the mask, as many tokens as a tile)
BLOCKS: dict[int, tuple[tuple[tuple[int, ...] | None, int], ...]] = {
    1: ((None, 128), (None, 64), (None, 32)),
    2: (((8, 8), 64), (None, 128), ((4, 8), 32)),
    3: (((4, 4, 4), 64), (None, 128), ((2, 4, 4), 32)),
}
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _coordinates(case: Case) -> np.ndarray:
    """[tokens, rank]"""
    spatial = case.spec.spatial
    return np.stack(np.unravel_index(np.arange(case.spec.tokens), spatial), -1)


def _order(case: Case, tile: Sequence[int] | None) -> np.ndarray:
    """The tokens in an order in which those of a dilation group and a tile are neighbours."""
    x, d = _coordinates(case), np.array(case.spec.dilation)
    group, position = x % d, x // d
    sizes = np.array(tile or (max(case.spec.spatial),) * case.spec.rank)
    return np.lexsort(np.concatenate([group, position // sizes, position % sizes], 1).T[::-1])


def _mask(case: Case, order: np.ndarray) -> Callable[..., torch.Tensor]:
    """FlexAttention's function of (batch, head, query, key): whether the query sees the key."""
    x = _coordinates(case)[order]
    keys = [torch.from_numpy(x[:, a].astype(np.int32)) for a in range(case.spec.rank)]
    rows = [torch.from_numpy(b[x[:, a]].astype(np.int32)) for a, b in enumerate(case.bounds)]
    start, stop = [r[:, 0].contiguous() for r in rows], [r[:, 1].contiguous() for r in rows]

    def sees(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        visible = None
        for a, d in enumerate(case.spec.dilation):
            k, first = keys[a][key], start[a][query]
            on_axis = (first <= k) & (k < stop[a][query])
            if d > 1:
                on_axis = on_axis & (k % d == first % d)
            visible = on_axis if visible is None else visible & on_axis
        assert visible is not None
        return visible

    return sees


def _prepare(case: Case, attend: Attend, order: np.ndarray, exact: bool) -> Prepared:
    spec = case.spec
    grids = (spec.batch, *spec.spatial)

    def operand(name: str) -> torch.Tensor:
        x = case.arrays[name]
        x = x.reshape(spec.batch, spec.tokens, *x.shape[-2:])[:, order]
        return torch.from_numpy(x).to(getattr(torch, case.dtype)).transpose(1, 2).contiguous()

    inputs = [operand(name).requires_grad_(case.backward) for name in case.inputs]
    dout = operand("dout")
    back = np.argsort(order)

    def call() -> Sequence[torch.Tensor]:
        if not case.backward:
            with torch.no_grad():
                return (attend(*inputs),)
        out = attend(*inputs)
        return (out.detach(), *torch.autograd.grad(out, inputs, dout))

    def to_numpy(results: Sequence[torch.Tensor]) -> list[np.ndarray]:
        arrays = [x.float().transpose(1, 2).numpy()[:, back] for x in results]
        return [x.reshape(*grids, *x.shape[-2:]) for x in arrays]

    return Prepared(call, to_numpy if exact else None)


def _flex(case: Case) -> Prepared:
    spec = case.spec

    def build(tile: Sequence[int] | None, block: int) -> Prepared:
        torch._dynamo.reset()
        order = _order(case, tile)
        sees = _mask(case, order)
        mask = create_block_mask(sees, None, None, spec.tokens, spec.tokens, device="cpu", BLOCK_SIZE=block)
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        grouped = spec.kv_heads != spec.heads
        attend = functools.partial(compiled, block_mask=mask, scale=spec.softmax_scale, enable_gqa=grouped)
        return _prepare(case, attend, order, exact=True)

    candidates = {}
    for tile, block in BLOCKS[spec.rank]:
        together = f", tokens by {'x'.join(map(str, tile))}" if tile else ""
        candidates[f"mask blocks of {block}{together}"] = functools.partial(build, tile, block)
    return fastest(case, candidates)


def _flex_obstacle(case: Case) -> str | None:
    many = f"the mask of all pairs of {case.spec.tokens} tokens is too large to build"
    return first_of(
        no_bias(case),
        "FlexAttention has no backward pass on the CPU" if case.backward else None,
        many if case.spec.tokens > LARGEST_MASK else None,
    )


def _everything(case: Case) -> Prepared:
    spec = case.spec
    grouped = spec.kv_heads != spec.heads
    attend = functools.partial(scaled_dot_product_attention, scale=spec.softmax_scale, enable_gqa=grouped)
    return _prepare(case, attend, np.arange(spec.tokens), exact=False)


def _sgemm(case: Case) -> Prepared:
    x = torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    out = torch.empty_like(x)
    return Prepared(lambda: (torch.mm(x, x, out=out),), None)


METHODS = (
    Method("torch-flex", "PyTorch: FlexAttention, compiled", _flex_obstacle, _flex),
    Method("torch-sdpa-all", "PyTorch: self attention over all tokens", no_bias, _everything),
    Method("torch-sgemm", f"{SGEMM_SIZE}^3 float32 matrix product in PyTorch", lambda case: None, _sgemm),
)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def instruction_set() -> str:
    return str(torch.backends.cpu.get_cpu_capability())

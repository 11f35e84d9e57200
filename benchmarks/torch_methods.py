# SPDX-License-Identifier: Apache-2.0
"""What is measured in PyTorch, if it is installed: FlexAttention compiled, and attention over everything.

Inputs are handed over in the layout that PyTorch likes, [batch, heads, tokens, head_dim], and for
FlexAttention also in the best order of tokens: what these changes of layout cost is not counted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import check
import numpy as np
import torch
from method import CPU, GPU, Array, Case, Method, Prepared, fastest, no_bias
from torch.nn.functional import scaled_dot_product_attention

from jax_na.tools import flex
from jax_na.tools.clock import Clock
from jax_na.tools.problems import Problem

if "OMP_NUM_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Attention(Prepared):
    """A function of the inputs of a case, in an order of its tokens."""

    def __init__(self, case: Case, attend: Any, order: Array, is_exact: bool = True) -> None:
        super().__init__(case, is_exact)
        self.order, self.attend = order, attend
        self.random = torch.Generator("cuda").manual_seed(0) if case.device == GPU else None
        gradients = case.problem.needs_gradients
        self.inputs = [self._tensor(name).requires_grad_(gradients) for name in flex.INPUTS]
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

    def call(self, problem: Problem) -> flex.Call:
        return flex.call(problem, self.attend, self.inputs, self.dout)

    def gpu_clock(self, problem: Problem) -> Clock:
        return flex.gpu_clock(self.call(problem))

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
        tensors = dict(zip(flex.INPUTS, self.inputs, strict=True)) | {"out": results["out"]}
        if case.problem.needs_gradients:
            tensors |= {"dout": self.dout, "dquery": results["dquery"]}

        def planes(batch: int, kv_head: int) -> check.Planes:
            heads = {name: check.heads(case.problem, name, kv_head) for name in tensors}
            return {name: self.to_numpy(x[batch, heads[name]]) for name, x in tensors.items()}

        return check.sampled(case.problem, case.bounds, planes)


def _flex(case: Case) -> Prepared:
    p = case.problem
    device = "cuda" if case.device == GPU else "cpu"

    def build(tile: Sequence[int] | None, block: int) -> Prepared:
        tokens = flex.order(p, tile)
        return Attention(case, flex.compiled(p, case.bounds, tokens, block, device), tokens)

    candidates = {}
    for tile, block in flex.LAYOUTS[case.device][p.rank]:
        together = f", tokens by {'x'.join(map(str, tile))}" if tile else ""
        candidates[f"mask blocks of {block}{together}"] = functools.partial(build, tile, block)
    return fastest(case, candidates)


def _flex_obstacle(case: Case) -> str | None:
    return flex.obstacle(case.problem, case.device)


def _everything(case: Case) -> Prepared:
    attend = functools.partial(scaled_dot_product_attention, **flex.attention_options(case.problem))
    return Attention(case, attend, np.arange(case.problem.tokens), is_exact=False)


METHODS = (
    Method("torch-flex", flex.ABOUT, _flex_obstacle, _flex),
    Method("torch-sdpa-all", "PyTorch: self attention over all tokens", no_bias, _everything, (CPU,)),
)

# SPDX-License-Identifier: Apache-2.0
"""The models that are measured, with their sizes: those of the paper's tables, and a few tiny ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx

from flax_layers.models import dinat_s, nat

IMPLEMENTATIONS = ("naive", "gemm", "fused", None)
DTYPES = ("bfloat16", "float32")
FAMILIES: dict[str, Any] = {"nat": nat.NAT, "dinat_s": dinat_s.DiNATs}
SIZES = ("mini", "tiny", "small", "base")
CLASSIFIERS = {
    name: (family, config)
    for family, variants in (("nat", nat.VARIANTS), ("dinat_s", dinat_s.VARIANTS))
    for name, config in variants.items()
    if name.rpartition("_")[-1] in SIZES
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model in one setting.

    Attributes:
        variant: its name.
        family: the model, one of FAMILIES.
        config: the variant's, or one derived from it.
        shape: of the images, [batch, side, side, channels].
        dtype: of the computation; parameters are float32.
        implementation: of attention; None is the one that the library takes.
        trains: a training step instead of the forward pass.
    """

    variant: str
    family: str
    config: Any
    shape: tuple[int, ...]
    dtype: str
    implementation: str | None = None
    trains: bool = False

    @property
    def name(self) -> str:
        """For example nat_mini-forward-bfloat16-fused, nat_mini-train-bfloat16-default-without-bias."""
        direction = "train" if self.trains else "forward"
        bias = "" if self.config.rel_pos_bias else "-without-bias"
        return f"{self.variant}-{direction}-{self.dtype}-{self.implementation or 'default'}{bias}"

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of results says of the case."""
        names = ("name", "variant", "shape", "dtype", "implementation", "trains")
        columns = {name: getattr(self, name) for name in names}
        return {**columns, "has_bias": self.config.rel_pos_bias}


def build(case: Case) -> nnx.Module:
    """The model, with initial parameters."""
    dtype = jnp.dtype(case.dtype)
    model: nnx.Module = FAMILIES[case.family](
        case.config, rngs=nnx.Rngs(0), dtype=dtype, implementation=case.implementation
    )
    if not case.trains:
        model.eval()
    return model


def cases(batch: int = 128, side: int = 224) -> Iterator[Case]:
    """What the paper's tables 5 and 6 have, then training steps, which its table 8 is made of."""
    shape = (batch, side, side, 3)
    for dtype, name, implementation in itertools.product(DTYPES, CLASSIFIERS, IMPLEMENTATIONS):
        yield Case(name, *CLASSIFIERS[name], shape, dtype, implementation)
    for name, has_bias in itertools.product(CLASSIFIERS, (True, False)):
        family, config = CLASSIFIERS[name]
        changed = dataclasses.replace(config, rel_pos_bias=has_bias)
        yield Case(name, family, changed, shape, "bfloat16", trains=True)


def quick_cases() -> Iterator[Case]:
    """Tiny models, to see that everything runs."""
    small = nat.NATConfig(16, (1, 1), (2, 4), kernel_size=3, num_classes=10)
    for implementation, trains in ((None, False), ("gemm", False), (None, True)):
        yield Case("nat_quick", "nat", small, (2, 32, 32, 3), "float32", implementation, trains)

# SPDX-License-Identifier: Apache-2.0
"""The models that are measured, with their sizes: those of the paper's tables, and a few tiny ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from families import FAMILIES
from flax import nnx

from flax_layers.models import dinat_s, hdit, nat, stylenat

IMPLEMENTATIONS = ("naive", "gemm", "fused", None)
DTYPES = ("bfloat16", "float32")
SIZES = ("mini", "tiny", "small", "base")
CLASSIFIERS = {
    name: (family, config)
    for family, variants in (("nat", nat.VARIANTS), ("dinat_s", dinat_s.VARIANTS))
    for name, config in variants.items()
    if name.rpartition("_")[-1] in SIZES
}
# Of a batch they take one image in so many: the paper has batches of 64 and 8 for the generator.
GENERATORS = {"ffhq_256": 2, "ffhq_1024": 16}
DENOISER, DENOISED = "imagenet_256", 4


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
        bias = "" if self.has_bias is not False else "-without-bias"
        return f"{self.variant}-{direction}-{self.dtype}-{self.implementation or 'default'}{bias}"

    @property
    def has_bias(self) -> bool | None:
        """A trained positional bias; None where the model has no such choice."""
        choice: bool | None = getattr(self.config, "rel_pos_bias", None)
        return choice

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of results says of the case."""
        names = ("name", "variant", "shape", "dtype", "implementation", "trains")
        columns = {name: getattr(self, name) for name in names}
        return {**columns, "has_bias": self.has_bias}


def build(case: Case) -> nnx.Module:
    """The model, with initial parameters."""
    dtype = jnp.dtype(case.dtype)
    model: nnx.Module = FAMILIES[case.family].module(
        case.config, rngs=nnx.Rngs(0), dtype=dtype, implementation=case.implementation
    )
    if not case.trains:
        model.eval()
    return model


def cases(batch: int = 128, side: int = 224) -> Iterator[Case]:
    """What the paper's tables 5 to 7 have, training steps, which its table 8 is made of, and HDiT."""
    shape = (batch, side, side, 3)
    for dtype, name, implementation in itertools.product(DTYPES, CLASSIFIERS, IMPLEMENTATIONS):
        yield Case(name, *CLASSIFIERS[name], shape, dtype, implementation)
    for name, implementation in itertools.product(GENERATORS, IMPLEMENTATIONS):
        generator = stylenat.VARIANTS[name]
        size = generator.side(len(generator.features) - 1)
        images = (max(batch // GENERATORS[name], 1), size, size, 3)
        yield Case(name, "stylenat", generator, images, "float32", implementation)
    for name, has_bias in itertools.product(CLASSIFIERS, (True, False)):
        family, config = CLASSIFIERS[name]
        changed = dataclasses.replace(config, rel_pos_bias=has_bias)
        yield Case(name, family, changed, shape, "bfloat16", trains=True)
    denoised = (max(batch // DENOISED, 1), 256, 256, 3)
    for implementation in IMPLEMENTATIONS:
        yield Case(DENOISER, "hdit", hdit.VARIANTS[DENOISER], denoised, "bfloat16", implementation)
    yield Case(DENOISER, "hdit", hdit.VARIANTS[DENOISER], denoised, "bfloat16", trains=True)


def quick_cases() -> Iterator[Case]:
    """Tiny models, to see that everything runs."""
    small = nat.NATConfig(16, (1, 1), (2, 4), kernel_size=3, num_classes=10)
    for implementation, trains in ((None, False), ("gemm", False), (None, True)):
        yield Case("nat_quick", "nat", small, (2, 32, 32, 3), "float32", implementation, trains)
    levels = (hdit.Level(1, 16, kernel_size=3, head_dim=8), hdit.Level(1, 32, "full", head_dim=8))
    denoiser = hdit.HDiTConfig(levels, hdit.Mapping(16, 1), num_classes=10)
    yield Case("hdit_quick", "hdit", denoiser, (2, 32, 32, 3), "float32", trains=True)
    generator = stylenat.StyleNATConfig((16, 16), ((1,),), style_features=16, mapping_depth=1)
    yield Case("stylenat_quick", "stylenat", generator, (1, 8, 8, 3), "float32")

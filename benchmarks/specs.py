# SPDX-License-Identifier: Apache-2.0
"""The attention problems worth measuring: shapes of real models, once, for tests, benchmarks and tuning.

Imports nothing but the standard library, so that any of them can load it, by name or by path.
"""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import Any

# CORE: ten problems that span the ranks and windows. MODELS: layers of published models, or like theirs.
# LARGE: cases of published GPU benchmarks; GPU: more that fill one. Hours on a CPU: only when asked for.
CORE, MODELS, LARGE, GPU, OVERHEAD = "core", "models", "large", "gpu", "overhead"
GROUPS = (CORE, MODELS, LARGE, GPU, OVERHEAD)


@dataclass(frozen=True)
class Spec:
    """One attention layer: q [batch, *spatial, heads, head_dim], k and v with kv_heads; geometry per axis."""

    name: str
    about: str
    batch: int
    spatial: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    is_causal: tuple[bool, ...] = ()
    kv_heads: int = 0  # 0: as many as heads
    rpb: bool = False
    scale: float | None = None  # None: head_dim ** -0.5
    group: str = MODELS

    def __post_init__(self) -> None:
        rank = len(self.spatial)
        fill = {"stride": (1,) * rank, "dilation": (1,) * rank, "is_causal": (False,) * rank}
        for name, default in fill.items():
            object.__setattr__(self, name, getattr(self, name) or default)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        per_axis = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        if self.group not in GROUPS or any(len(values) != rank for values in per_axis):
            raise ValueError(f"{self.name}: an unknown group, or not one value per axis")

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def tokens(self) -> int:
        """Queries of one batch element."""
        return math.prod(self.spatial)

    @property
    def window(self) -> int:
        """Keys of a full window."""
        return math.prod(self.kernel_size)

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def neighborhood(self) -> dict[str, Any]:
        """The arguments of jax_na.Neighborhood."""
        names = ("kernel_size", "stride", "dilation", "is_causal")
        return {name: getattr(self, name) for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs, by the names of jax_na.neighborhood_attention."""
        grid = (self.batch, *self.spatial)
        kv = (*grid, self.kv_heads, self.head_dim)
        shapes = {"query": (*grid, self.heads, self.head_dim), "key": kv, "value": kv}
        if self.rpb:
            shapes["rpb"] = (self.heads, *(2 * w - 1 for w in self.kernel_size))
        return shapes


SPECS = (
    Spec("1d-4096-w257", "sequence, large window", 1, (4096,), 8, 64, (257,), group=CORE),
    Spec("1d-1024-w7", "sequence, small window", 4, (1024,), 4, 32, (7,), group=CORE),
    Spec("nat-s1-56", "NAT stage 1, 224 px", 4, (56, 56), 2, 32, (7, 7), group=CORE),
    Spec("nat-s2-28", "NAT stage 2, 224 px", 4, (28, 28), 4, 32, (7, 7), group=CORE),
    Spec("nat-s3-14", "NAT stage 3, 224 px", 4, (14, 14), 8, 32, (7, 7), group=CORE),
    Spec("nat-s4-7", "NAT stage 4, 224 px (full)", 4, (7, 7), 16, 32, (7, 7), group=CORE),
    Spec("dinat-s1-56-d8", "DiNAT stage 1, 224 px", 4, (56, 56), 2, 32, (7, 7), dilation=(8, 8), group=CORE),
    Spec("2d-64-w13", "image, 13 x 13 window", 1, (64, 64), 4, 64, (13, 13), group=CORE),
    Spec("3d-16-w5", "volume, 5 x 5 x 5 window", 1, (16, 16, 16), 4, 32, (5, 5, 5), group=CORE),
    Spec("3d-8x28x28-w3x7x7", "video, 3 x 7 x 7 window", 1, (8, 28, 28), 4, 64, (3, 7, 7), group=CORE),
    Spec("dinat-s2-28-d4", "DiNAT stage 2, 224 px", 4, (28, 28), 4, 32, (7, 7), dilation=(4, 4)),
    Spec("dinat-s3-14-d2", "DiNAT stage 3, 224 px", 4, (14, 14), 8, 32, (7, 7), dilation=(2, 2)),
    Spec("nat-s1-56-rpb", "NAT stage 1 with positional bias", 4, (56, 56), 2, 32, (7, 7), rpb=True),
    Spec("swin-s1-56", "blocked windows, as Swin's", 4, (56, 56), 3, 32, (7, 7), stride=(7, 7)),
    Spec("hdit-s1-64", "HDiT 256 px, level 1", 4, (64, 64), 2, 64, (7, 7), scale=1.0),
    Spec("hdit-s2-32", "HDiT 256 px, level 2", 4, (32, 32), 4, 64, (7, 7), scale=1.0),
    Spec("music-6000-d16", "music, 4 stems, 60 s at 100 Hz", 4, (6000,), 2, 12, (5,), dilation=(16,)),
    Spec("music-6000-d16-rpb", "the same with its bias", 4, (6000,), 2, 12, (5,), dilation=(16,), rpb=True),
    Spec(
        "text-4096-w512",
        "text, causal, 4 heads a kv head",
        1,
        (4096,),
        8,
        64,
        (512,),
        is_causal=(True,),
        kv_heads=2,
    ),
    Spec("image-64-w20-s4", "image tokens, strided", 1, (64, 64), 4, 128, (20, 20), stride=(4, 4)),
    Spec(
        "video-8x32x32-causal",
        "video decoder, causal in time",
        1,
        (8, 32, 32),
        4,
        64,
        (3, 5, 5),
        is_causal=(True, False, False),
    ),
    Spec(
        "video-8x24x40-s2x4x4",
        "video diffusion, strided",
        1,
        (8, 24, 40),
        2,
        128,
        (6, 12, 12),
        stride=(2, 4, 4),
    ),
    Spec("volume-32-w5", "volume of 32768 voxels", 1, (32, 32, 32), 2, 32, (5, 5, 5)),
    Spec("1d-32768-w2048", "long sequence", 1, (32768,), 1, 128, (2048,), group=LARGE),
    Spec(
        "1d-32768-w2048-s256", "the same, strided", 1, (32768,), 1, 128, (2048,), stride=(256,), group=LARGE
    ),
    Spec("flux-256-w80", "FLUX, 4K images", 1, (256, 256), 24, 128, (80, 80), group=LARGE),
    Spec(
        "flux-256-w80-s16",
        "the same, strided",
        1,
        (256, 256),
        24,
        128,
        (80, 80),
        stride=(16, 16),
        group=LARGE,
    ),
    Spec("hunyuan-30x48x80", "HunyuanVideo", 1, (30, 48, 80), 24, 128, (18, 24, 24), group=LARGE),
    Spec(
        "hunyuan-30x48x80-s16x8x8",
        "the same, strided",
        1,
        (30, 48, 80),
        24,
        128,
        (18, 24, 24),
        stride=(16, 8, 8),
        group=LARGE,
    ),
    Spec(
        "1d-32768-w2048-s2048", "the same, blocked", 1, (32768,), 1, 128, (2048,), stride=(2048,), group=LARGE
    ),
    Spec("1d-32768-w2048-h24", "long sequence, 24 heads", 1, (32768,), 24, 128, (2048,), group=GPU),
    Spec("1d-32768-w512-d16", "the same, dilated", 1, (32768,), 24, 128, (512,), dilation=(16,), group=GPU),
    Spec("2d-128-w33-b4", "images, large window", 4, (128, 128), 12, 64, (33, 33), group=GPU),
    Spec("2d-64-w13-b16", "images, 13 x 13 window", 16, (64, 64), 16, 64, (13, 13), group=GPU),
    Spec("nat-s1-56-b128", "NAT stage 1, 128 images", 128, (56, 56), 4, 32, (7, 7), group=GPU),
    Spec("3d-16x32x32-b4", "video, 5 x 7 x 7 window", 4, (16, 32, 32), 12, 64, (5, 7, 7), group=GPU),
    Spec("3d-16x64x64-w3x5x5", "video decoder", 2, (16, 64, 64), 8, 64, (3, 5, 5), group=GPU),
    Spec("tiny-16-w3", "for the overhead of a call", 1, (16,), 1, 8, (3,), group=OVERHEAD),
)
BY_NAME = {spec.name: spec for spec in SPECS}


def select(patterns: str) -> tuple[Spec, ...]:
    """The specs of a comma-separated list of names, groups, "all" (but for GPUs) and patterns with * and ?.

    Raises:
        ValueError: for an entry that names none.
    """
    chosen: dict[str, Spec] = {}
    for pattern in patterns.split(","):
        found = [s for s in SPECS if _matches(s, pattern.strip())]
        if not found:
            raise ValueError(f"no spec is called {pattern!r}; there are {', '.join(BY_NAME)}")
        chosen |= {spec.name: spec for spec in found}
    return tuple(chosen.values())


def _matches(spec: Spec, pattern: str) -> bool:
    if pattern == "all":
        return spec.group not in (LARGE, GPU)
    if pattern in GROUPS:
        return spec.group == pattern
    if "*" in pattern or "?" in pattern:
        return spec.group not in (LARGE, GPU) and fnmatch.fnmatch(spec.name, pattern)
    return spec.name == pattern

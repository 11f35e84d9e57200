# SPDX-License-Identifier: Apache-2.0
"""The attention problems worth measuring: shapes of real models, by name.

Benchmarks, `jax-na profile` and `jax-na tune` take them from here. This module imports the standard library
only, so that a Python without JAX can load it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
PASSES = {FORWARD: 1.0, BACKWARD: 2.5, BOTH: 3.5}  # useful FLOPs, in forward passes
ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

# CORE: ten problems that span the ranks and windows. MODELS: layers of published models, or like theirs.
# LARGE: cases of published GPU benchmarks; GPU: more that fill one; SMALL: small windows that do, of models
# in training and of video decoders. Hours on a CPU: only when asked for.
CORE, MODELS, LARGE, GPU, SMALL, OVERHEAD = "core", "models", "large", "gpu", "small", "overhead"
ASKED_FOR = (LARGE, GPU, SMALL)


@dataclass(frozen=True)
class Problem:
    """One attention: query [batch, *spatial, heads, head_dim], key and value with kv_heads; what is asked."""

    name: str
    about: str
    batch: int
    spatial: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    rpb: bool = False
    scale: float | None = None  # None: head_dim ** -0.5
    group: str = ""
    dtype: str = "float32"
    direction: str = FORWARD

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
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
    def group_size(self) -> int:
        """Query heads of one key head."""
        return self.heads // self.kv_heads

    @property
    def softmax_scale(self) -> float:
        """The number that scores are multiplied with."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def geometry(self) -> dict[str, Any]:
        """The arguments of jax_na.Neighborhood."""
        names = ("kernel_size", "stride", "dilation", "is_causal")
        return {name: getattr(self, name) for name in names}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs, by the names of jax_na.neighborhood_attention."""
        grid = (self.batch, *self.spatial)
        shapes: dict[str, tuple[int, ...]] = {
            "query": (*grid, self.heads, self.head_dim),
            "key": (*grid, self.kv_heads, self.head_dim),
            "value": (*grid, self.kv_heads, self.value_dim),
        }
        if self.rpb:
            shapes["rpb"] = (self.heads, *(2 * w - 1 for w in self.kernel_size))
        return shapes

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, and of its cotangent."""
        return (self.batch, *self.spatial, self.heads, self.value_dim)

    @property
    def needs_gradients(self) -> bool:
        """Whether the backward pass is part of it."""
        return self.direction != FORWARD

    @property
    def pairs(self) -> int:
        """All queries with all keys, over batch and heads."""
        return self.batch * self.heads * self.tokens**2

    @property
    def dense_flops(self) -> float:
        """FLOPs of attention of every token to all tokens."""
        return 2.0 * self.pairs * (self.head_dim + self.value_dim) * PASSES[self.direction]

    @property
    def least_bytes(self) -> float:
        """What has to be read and written at least: every array once."""
        size = ITEMSIZE[self.dtype]
        inputs = sum(math.prod(self.shapes[name]) * size for name in ("query", "key", "value"))
        out, lse = math.prod(self.out_shape) * size, math.prod(self.out_shape[:-1]) * 4
        forward, backward = inputs + out + lse, 2 * inputs + 2 * out + lse
        return float({FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[self.direction])


def problem(
    name: str,
    about: str,
    grid: Sequence[int],
    heads: Sequence[int],
    kernel_size: int | tuple[int, ...],
    **options: Any,
) -> Problem:
    """A problem in short: grid (batch, *spatial), heads (heads, head_dim) or (heads, head_dim, kv_heads).

    `options` are further fields. A parameter of the window is one value, or one for every axis.
    """
    batch, *spatial = grid
    number, head_dim, *kv_heads = heads
    window = {"kernel_size": kernel_size, "stride": 1, "dilation": 1, "is_causal": False}
    for key in window:
        value = options.pop(key, window[key])
        options[key] = value if isinstance(value, tuple) else (value,) * len(spatial)
        if len(options[key]) != len(spatial):
            raise ValueError(f"{name}: {key} {value} does not have one value for each of {len(spatial)} axes")
    options = {"kv_heads": kv_heads[0] if kv_heads else number, "value_dim": head_dim} | options
    return Problem(name, about, batch, tuple(spatial), number, head_dim=head_dim, **options)


def _core() -> Iterator[Problem]:
    yield problem("1d-4096-w257", "sequence, large window", (1, 4096), (8, 64), 257)
    yield problem("1d-1024-w7", "sequence, small window", (4, 1024), (4, 32), 7)
    yield problem("nat-s1-56", "NAT stage 1, 224 px", (4, 56, 56), (2, 32), 7)
    yield problem("nat-s2-28", "NAT stage 2, 224 px", (4, 28, 28), (4, 32), 7)
    yield problem("nat-s3-14", "NAT stage 3, 224 px", (4, 14, 14), (8, 32), 7)
    yield problem("nat-s4-7", "NAT stage 4, 224 px (full)", (4, 7, 7), (16, 32), 7)
    yield problem("dinat-s1-56-d8", "DiNAT stage 1, 224 px", (4, 56, 56), (2, 32), 7, dilation=8)
    yield problem("2d-64-w13", "image, 13 x 13 window", (1, 64, 64), (4, 64), 13)
    yield problem("3d-16-w5", "volume, 5 x 5 x 5 window", (1, 16, 16, 16), (4, 32), 5)
    yield problem("3d-8x28x28-w3x7x7", "video, 3 x 7 x 7 window", (1, 8, 28, 28), (4, 64), (3, 7, 7))


def _models() -> Iterator[Problem]:
    yield problem("dinat-s2-28-d4", "DiNAT stage 2, 224 px", (4, 28, 28), (4, 32), 7, dilation=4)
    yield problem("dinat-s3-14-d2", "DiNAT stage 3, 224 px", (4, 14, 14), (8, 32), 7, dilation=2)
    yield problem("nat-s1-56-rpb", "NAT stage 1 with positional bias", (4, 56, 56), (2, 32), 7, rpb=True)
    yield problem("swin-s1-56", "blocked windows, as Swin's", (4, 56, 56), (3, 32), 7, stride=7)
    yield problem("hdit-s1-64", "HDiT 256 px, level 1", (4, 64, 64), (2, 64), 7, scale=1.0)
    yield problem("hdit-s2-32", "HDiT 256 px, level 2", (4, 32, 32), (4, 64), 7, scale=1.0)
    yield problem("music-6000-d16", "music, 4 stems, 60 s at 100 Hz", (4, 6000), (2, 12), 5, dilation=16)
    yield problem(
        "music-6000-d16-rpb", "the same with its bias", (4, 6000), (2, 12), 5, dilation=16, rpb=True
    )
    yield problem("text-4096-w512", "text, 4 heads a kv head", (1, 4096), (8, 64, 2), 512, is_causal=True)
    yield problem("image-64-w20-s4", "image tokens, strided", (1, 64, 64), (4, 128), 20, stride=4)
    causal, steps = (True, False, False), (2, 4, 4)
    yield problem("video-8x32x32-causal", "decoder", (1, 8, 32, 32), (4, 64), (3, 5, 5), is_causal=causal)
    yield problem("video-8x24x40-s2x4x4", "diffusion", (1, 8, 24, 40), (2, 128), (6, 12, 12), stride=steps)
    yield problem("volume-32-w5", "volume of 32768 voxels", (1, 32, 32, 32), (2, 32), 5)


def _large() -> Iterator[Problem]:
    sequence, image, video = (1, 32768), (1, 256, 256), (1, 30, 48, 80)
    yield problem("1d-32768-w2048", "long sequence", sequence, (1, 128), 2048)
    yield problem("1d-32768-w2048-s256", "the same, strided", sequence, (1, 128), 2048, stride=256)
    yield problem("flux-256-w80", "FLUX, 4K images", image, (24, 128), 80)
    yield problem("flux-256-w80-s16", "the same, strided", image, (24, 128), 80, stride=16)
    window = (18, 24, 24)
    yield problem("hunyuan-30x48x80", "HunyuanVideo", video, (24, 128), window)
    strided = "hunyuan-30x48x80-s16x8x8"
    yield problem(strided, "the same, strided", video, (24, 128), window, stride=(16, 8, 8))
    yield problem("1d-32768-w2048-s2048", "the same, blocked", sequence, (1, 128), 2048, stride=2048)


def _gpu() -> Iterator[Problem]:
    yield problem("1d-32768-w2048-h24", "long sequence, 24 heads", (1, 32768), (24, 128), 2048)
    yield problem("1d-32768-w512-d16", "the same, dilated", (1, 32768), (24, 128), 512, dilation=16)
    yield problem("2d-128-w33-b4", "images, large window", (4, 128, 128), (12, 64), 33)
    yield problem("2d-64-w13-b16", "images, 13 x 13 window", (16, 64, 64), (16, 64), 13)
    yield problem("nat-s1-56-b128", "NAT stage 1, 128 images", (128, 56, 56), (4, 32), 7)
    yield problem("3d-16x32x32-b4", "video, 5 x 7 x 7 window", (4, 16, 32, 32), (12, 64), (5, 7, 7))
    yield problem("3d-16x64x64-w3x5x5", "video decoder", (2, 16, 64, 64), (8, 64), (3, 5, 5))


def _small() -> Iterator[Problem]:
    yield from _small_images()
    yield from _small_videos()


def _small_images() -> Iterator[Problem]:
    stages = {"nat-s1": (56, 4), "nat-s2": (28, 8), "nat-s3": (14, 16), "nat-s4": (7, 32)}
    for name, (side, heads) in stages.items():
        if name != "nat-s1":  # in GPU
            yield problem(f"{name}-{side}-b128", "NAT, 128 images", (128, side, side), (heads, 32), 7)
        biased = f"{name}-{side}-b128-rpb"
        yield problem(biased, "the same with its bias", (128, side, side), (heads, 32), 7, rpb=True)
    yield problem(
        "dinat-s1-56-b128-rpb", "DiNAT stage 1, biased", (128, 56, 56), (4, 32), 7, dilation=8, rpb=True
    )
    yield problem("2d-64-w13-b16-rpb", "13 x 13 window, biased", (16, 64, 64), (16, 64), 13, rpb=True)
    yield problem("hdit-s1-64-b32", "HDiT 256 px, level 1", (32, 64, 64), (2, 64), 7, scale=1.0)
    yield problem(
        "stylenat-256-b8", "StyleNAT 256 px, half of the heads", (8, 256, 256), (2, 16), 7, rpb=True
    )
    yield problem("stylenat-256-b8-d32", "the other half", (8, 256, 256), (2, 16), 7, dilation=32, rpb=True)


def _small_videos() -> Iterator[Problem]:
    video = (2, 16, 64, 64)
    yield problem("3d-16x64x64-w3x5x5-rpb", "video, biased", video, (8, 64), (3, 5, 5), rpb=True)
    yield problem("ltx-s1", "LTX-2.5 decoder, stage 1", (1, 18, 32, 48), (32, 64), (3, 7, 7), scale=1.0)
    yield problem("ltx-s2", "stage 2", (1, 18, 64, 96), (16, 64), (3, 7, 7), scale=1.0)
    yield problem("ltx-s3", "stage 3", (1, 35, 64, 96), (8, 64), (3, 5, 5), scale=1.0)
    yield problem("ltx-s4", "stage 4", (1, 69, 128, 192), (8, 64), (3, 5, 5), scale=1.0)
    yield problem("ltx-s5", "stage 5, one of its tiles", (1, 80, 192, 192), (4, 64), (11,) * 3, scale=1.0)
    window, step = (18, 24, 24), (6, 8, 8)
    yield problem("sta-30x48x80", "Sliding Tile Attention", (1, 30, 48, 80), (24, 128), window, stride=step)


def _overhead() -> Iterator[Problem]:
    yield problem("tiny-16-w3", "for the overhead of a call", (1, 16), (1, 8), 3)


GROUPS = {CORE: _core, MODELS: _models, LARGE: _large, GPU: _gpu, SMALL: _small, OVERHEAD: _overhead}
PROBLEMS = tuple(replace(p, group=group) for group, members in GROUPS.items() for p in members())
BY_NAME = {p.name: p for p in PROBLEMS}


def select(patterns: str) -> tuple[Problem, ...]:
    """The problems of a comma-separated list of names, groups, patterns with * and ?, or "all" but for GPUs.

    Raises:
        ValueError: for an entry that names none.
    """
    chosen: dict[str, Problem] = {}
    for pattern in patterns.split(","):
        found = [p for p in PROBLEMS if _matches(p, pattern.strip())]
        if not found:
            raise ValueError(f"no problem is called {pattern!r}; there are {', '.join(BY_NAME)}")
        chosen |= {p.name: p for p in found}
    return tuple(chosen.values())


def _matches(candidate: Problem, pattern: str) -> bool:
    if pattern == "all":
        return candidate.group not in ASKED_FOR
    if pattern in GROUPS:
        return candidate.group == pattern
    if "*" in pattern or "?" in pattern:
        return candidate.group not in ASKED_FOR and fnmatch.fnmatch(candidate.name, pattern)
    return candidate.name == pattern

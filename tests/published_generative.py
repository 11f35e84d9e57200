# SPDX-License-Identifier: Apache-2.0
"""HDiT and StyleNAT as they are published, in NumPy and float64, from arrays by their published names.

Shares no code with the models: neighborhoods are those of the oracle, everything else is written out here.
"""

import math

import numpy as np
from scipy.special import erf

from . import oracle


def attention(q, k, v, kernel_size, dilation, scale, rpb=None):
    """[B, X, Y, heads, D] each; all keys if there is no kernel_size."""
    lengths = q.shape[1:3]
    sizes = lengths if kernel_size is None else (kernel_size,) * 2
    axes = tuple(
        oracle.Axis(length=n, kernel_size=w, dilation=dilation) for n, w in zip(lengths, sizes, strict=True)
    )
    inputs = {"query": q, "key": k, "value": v} | ({} if rpb is None else {"rpb": rpb})
    return oracle.Attention(oracle.Geometry(axes), inputs, scale).out


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def standardized(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


class Published:
    """A state dict, with the linear layers in it."""

    def __init__(self, state):
        self.state = {name: np.asarray(x, np.float64) for name, x in state.items()}

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def qkv(self, name, x, heads):
        """[B, X, Y, C] to three times [B, X, Y, heads, D]: the stacked layer has the order (3, heads, D)."""
        stacked = self.linear(name, x)
        return np.moveaxis(stacked.reshape(*stacked.shape[:-1], 3, heads, -1), -3, 0)


class HDiT(Published):
    """levels: (depth, head_dim, kernel_size or None) from the top; everything else is in the arrays."""

    def __init__(self, state, levels, patch):
        super().__init__(state)
        self.levels, self.patch = levels, patch

    def rms(self, x, scale):
        return x * scale / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    def geglu(self, name, x):
        value, gate = np.split(self.linear(f"{name}.up_proj", x), 2, -1)
        return self.linear(f"{name}.down_proj", value * gelu(gate))

    def fourier(self, name, x):
        angles = 2 * np.pi * x @ self.state[f"{name}.weight"].T
        return np.concatenate([np.cos(angles), np.sin(angles)], -1)

    def condition(self, sigma, classes, augmentation, extra):
        c = self.linear("time_in_proj", self.fourier("time_emb", np.log(sigma)[:, None] / 4))
        c = c + self.linear("aug_in_proj", self.fourier("aug_emb", augmentation))
        c = c + self.state["class_emb.weight"][classes] + self.linear("mapping_cond_in_proj", extra)
        c = self.rms(c, self.state["mapping.in_norm.scale"])
        for i in range(sum(name.endswith("norm.scale") for name in self.state if ".blocks." in name)):
            block = f"mapping.blocks.{i}"
            c = c + self.geglu(block, self.rms(c, self.state[f"{block}.norm.scale"]))
        return self.rms(c, self.state["mapping.out_norm.scale"])

    def rotate(self, x, coordinates, frequencies):
        """Pairs (m, m + D/4) turn, the upper half of the features does not."""
        angles = np.concatenate([coordinates[..., i, None, None] * frequencies for i in (0, 1)], -1)
        quarter = angles.shape[-1]
        out = x.copy()
        for m in range(quarter):
            a, b, angle = x[..., m], x[..., m + quarter], angles[..., m]
            out[..., m] = a * np.cos(angle) - b * np.sin(angle)
            out[..., m + quarter] = a * np.sin(angle) + b * np.cos(angle)
        return out

    def layer(self, name, x, c, coordinates, head_dim, kernel_size):
        def norm(part, x):
            scale = 1 + self.linear(f"{name}.{part}.norm.linear", c)
            return self.rms(x, scale[:, None, None])

        own = f"{name}.self_attn"
        heads = x.shape[-1] // head_dim
        q, k, v = self.qkv(f"{own}.qkv_proj", norm("self_attn", x), heads)
        root = np.sqrt(self.state[f"{own}.scale"])[:, None]
        q, k = (root * t / np.sqrt((t**2).sum(-1, keepdims=True) + 1e-6) for t in (q, k))
        q, k = (self.rotate(t, coordinates, self.state[f"{own}.pos_emb.freqs"]) for t in (q, k))
        out = attention(q, k, v, kernel_size, 1, 1.0)
        x = x + self.linear(f"{own}.out_proj", out.reshape(x.shape))
        return x + self.geglu(f"{name}.ff", norm("ff", x))

    def merged(self, x, side):
        batch, rows, columns, _ = x.shape
        return np.stack(
            [
                x[:, i : i + side, j : j + side].reshape(batch, -1)
                for i in range(0, rows, side)
                for j in range(0, columns, side)
            ],
            1,
        ).reshape(batch, rows // side, columns // side, -1)

    def pixels(self, x, side):
        batch, rows, columns, features = x.shape
        out = np.zeros((batch, rows * side, columns * side, features // side**2))
        for i in range(rows):
            for j in range(columns):
                block = x[:, i, j].reshape(batch, side, side, -1)
                out[:, i * side : (i + 1) * side, j * side : (j + 1) * side] = block
        return out

    def coordinates(self, rows, columns):
        centres = [(2 * np.arange(n) + 1) / n - 1 for n in (rows, columns)]
        longer = max(rows, columns)
        grid = np.meshgrid(centres[0] * rows / longer, centres[1] * columns / longer, indexing="ij")
        return np.stack(grid, -1)

    def __call__(self, x, sigma, classes, augmentation, extra):
        c = self.condition(sigma, classes, augmentation, extra)
        x = self.linear("patch_in.proj", self.merged(x, self.patch))
        place = self.coordinates(*x.shape[1:3])
        stack = []
        *outer, middle = self.levels
        for i, (depth, *sizes) in enumerate(outer):
            for k in range(depth):
                x = self.layer(f"down_levels.{i}.{k}", x, c, place, *sizes)
            stack.append((x, place))
            x = self.linear(f"merges.{i}.proj", self.merged(x, 2))
            place = (place[::2, ::2] + place[1::2, ::2] + place[::2, 1::2] + place[1::2, 1::2]) / 4
        depth, *sizes = middle
        for k in range(depth):
            x = self.layer(f"mid_level.{k}", x, c, place, *sizes)
        for i, (depth, *sizes) in reversed(list(enumerate(outer))):
            skip, place = stack[i]
            fac = self.state[f"splits.{i}.fac"]
            x = (1 - fac) * skip + fac * self.pixels(self.linear(f"splits.{i}.proj", x), 2)
            for k in range(depth):
                x = self.layer(f"up_levels.{i}.{k}", x, c, place, *sizes)
        x = self.linear("patch_out.proj", self.rms(x, self.state["out_norm.scale"]))
        return self.pixels(x, self.patch)


class StyleNAT(Published):
    """heads of the levels, and dilations of their groups by level after the first; both layouts."""

    def __init__(self, state, heads, dilations, kernel_size, rate):
        super().__init__(state)
        self.heads, self.dilations, self.kernel_size, self.rate = heads, dilations, kernel_size, rate

    def equal(self, name, x, rate=1.0):
        weight = self.state[f"{name}.weight"]
        return x @ (weight * rate / math.sqrt(weight.shape[1])).T + self.state[f"{name}.bias"] * rate

    def mapping(self, z):
        w = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-8)
        for i in range(sum(name.startswith("style.") for name in self.state) // 2):
            w = self.equal(f"style.{i + 1}", w, self.rate)
            w = np.where(w > 0, w, 0.2 * w) * math.sqrt(2)
        return w

    def adain(self, name, x, w):
        gamma, beta = np.split(self.equal(f"{name}.style", w)[:, None, None], 2, -1)
        return gamma * standardized(x, (1, 2), 1e-5) + beta

    def attention(self, level, name, x):
        q, k, v = self.qkv(f"{name}.qkv", x, self.heads[level])
        scale = q.shape[-1] ** -0.5
        if level == 0:
            out = attention(q, k, v, None, 1, scale, self.state[f"{name}.rpb"])
        else:
            legacy = f"{name}.rpb0" in self.state
            dilations = self.dilations[level - 1]
            dilations = dilations * 2 if legacy and len(dilations) == 1 else dilations
            parts, start = [], 0
            for g, dilation in enumerate(dilations):
                rpb = self.state[f"{name}.rpb{g}" if legacy else f"{name}.rpb.{g}"]
                own = [t[..., start : start + len(rpb), :] for t in (q, k, v)]
                parts.append(attention(*own, self.kernel_size, dilation, scale, rpb))
                start += len(rpb)
            out = np.concatenate(parts, -2)
        return self.linear(f"{name}.proj", out.reshape(x.shape))

    def block(self, level, name, x, w):
        x = x + self.attention(level, f"{name}.attn", self.adain(f"{name}.norm1", x, w))
        hidden = gelu(self.linear(f"{name}.mlp.fc1", self.adain(f"{name}.norm2", x, w)))
        return x + self.linear(f"{name}.mlp.fc2", hidden)

    def bilinear(self, x, axis):
        """Half-pixel centres; coordinates beyond the border are those of the border."""
        x = np.moveaxis(x, axis, 0)
        side = len(x)
        where = np.clip((np.arange(2 * side) + 0.5) / 2 - 0.5, 0, side - 1)
        low = np.floor(where).astype(int)
        share = (where - low).reshape(-1, *(1,) * (x.ndim - 1))
        out = (1 - share) * x[low] + share * x[np.minimum(low + 1, side - 1)]
        return np.moveaxis(out, 0, axis)

    def upsample(self, name, x):
        x = standardized(self.bilinear(self.bilinear(x, 1), 2), -1, 1e-5)
        x = x * self.state[f"{name}.norm.weight"] + self.state[f"{name}.norm.bias"]
        x = self.linear(f"{name}.reduction", x)
        side, features = x.shape[2:]
        count = features // 4
        table = np.zeros((side, side, features))
        for row in range(side):
            for column in range(side):
                for m in range(count):
                    frequency = 10000 ** (-m / (count - 1))
                    for part, place in enumerate((column + 1, row + 1)):
                        table[row, column, 2 * part * count + m] = math.sin(place * frequency)
                        table[row, column, (2 * part + 1) * count + m] = math.cos(place * frequency)
        return x + self.state[f"{name}.alpha"] * table

    def skip(self, image):
        """Zeros between the pixels, padded by 2 and 1, and the filter [1, 3, 3, 1] along both axes."""
        batch, side, _, channels = image.shape
        spread = np.zeros((batch, 2 * side + 3, 2 * side + 3, channels))
        spread[:, 2 : 2 * side + 2 : 2, 2 : 2 * side + 2 : 2] = image
        kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
        return sum(
            kernel[i, j] * spread[:, i : i + 2 * side, j : j + 2 * side] for i in range(4) for j in range(4)
        )

    def __call__(self, z):
        w = self.mapping(z)
        x = np.repeat(np.moveaxis(self.state["input.input"], 1, -1), len(z), 0)
        image, last = None, len(self.heads) - 1
        for level in range(last + 1):
            for j in range(2):
                x = self.block(level, f"layers.{level}.blocks.{j}", x, w)
            if level < last:
                x = self.upsample(f"layers.{level}.upsample", x)
            weight = self.state[f"to_rgbs.{level}.conv.weight"][:, :, 0, 0]
            rgb = x @ weight.T + self.state[f"to_rgbs.{level}.conv.bias"]
            rgb = rgb + self.state[f"to_rgbs.{level}.bias"][0, :, 0, 0]
            if image is not None:
                rgb = rgb + (self.skip(image) if level < last else image)
            image = rgb
        return image

# SPDX-License-Identifier: Apache-2.0
"""NAT, DiNAT, DiNAT_s and the isotropic models as published: forward in NumPy, channels first, float64.

Written from the description of the architectures, it works on arrays with the published names and shapes, and
shares no code with the models or with the library.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import erf

Array = np.ndarray
State = Mapping[str, Array]


def layer_norm(x: Array, state: State, name: str) -> Array:
    """Over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    unit = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Array, state: State, name: str) -> Array:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)


def conv(x: Array, state: State, name: str, stride: int, padding: int) -> Array:
    """[batch, in, X, Y] to [batch, out, X', Y']."""
    weight = state[f"{name}.weight"]
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    sides = [(n - weight.shape[-1]) // stride + 1 for n in x.shape[2:]]
    out = np.zeros((x.shape[0], weight.shape[0], *sides))
    for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        part = x[:, :, i:, j:][:, :, ::stride, ::stride][:, :, : sides[0], : sides[1]]
        out += np.einsum("bcxy,oc->boxy", part, weight[:, :, i, j])
    return out + np.reshape(state.get(f"{name}.bias", np.zeros(len(weight))), (-1, 1, 1))


def seen(length: int, kernel_size: int, dilation: int) -> tuple[Array, Array]:
    """[length, kernel_size]: the keys of every query of an axis, and their entries of the bias."""
    keys, entries = [], []
    for query in range(length):
        group = list(range(query % dilation, length, dilation))
        place = group.index(query)
        start = min(max(place - kernel_size // 2, 0), len(group) - kernel_size)
        keys.append(group[start : start + kernel_size])
        entries.append([start + slot - place + kernel_size - 1 for slot in range(kernel_size)])
    return np.array(keys), np.array(entries)


def attention(x: Array, state: State, name: str, kernel_size: int, dilation: int) -> Array:
    """[batch, X, Y, C] to the same, in windows; small grids are padded before the projection."""
    rpb = state[f"{name}.rpb"]
    heads, sides = len(rpb), x.shape[1:3]
    least = kernel_size * dilation
    x = np.pad(x, [(0, 0), *((0, max(least - n, 0)) for n in sides), (0, 0)])
    qkv = linear(x, state, f"{name}.qkv").reshape(*x.shape[:3], 3, heads, -1)
    query, key, value = np.moveaxis(qkv, 3, 0)
    (rows, row_entries), (columns, column_entries) = (seen(n, kernel_size, dilation) for n in x.shape[1:3])
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    bias = rpb[:, row_entries[:, None, :, None], column_entries[None, :, None, :]]
    scores = np.einsum("bxyhd,bxyijhd->bhxyij", query * query.shape[-1] ** -0.5, key[:, row, column]) + bias
    weights = np.exp(scores - scores.max((-1, -2), keepdims=True))
    weights /= weights.sum((-1, -2), keepdims=True)
    out = np.einsum("bhxyij,bxyijhd->bxyhd", weights, value[:, row, column])
    return linear(out.reshape(x.shape), state, f"{name}.proj")[:, : sides[0], : sides[1]]


def block(x: Array, state: State, name: str, kernel_size: int, dilation: int) -> Array:
    """[batch, X, Y, C] to the same."""
    hidden = attention(layer_norm(x, state, f"{name}.norm1"), state, f"{name}.attn", kernel_size, dilation)
    x = x + state.get(f"{name}.gamma1", 1.0) * hidden
    hidden = linear(layer_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
    hidden = linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, state, f"{name}.mlp.fc2")
    return x + state.get(f"{name}.gamma2", 1.0) * hidden


def classified(x: Array, state: State) -> Array:
    return linear(layer_norm(x, state, "norm").mean((1, 2)), state, "head")


def patches(images: Array, state: State, size: int) -> Array:
    """[batch, 3, X, Y] to [batch, X', Y', E], with a norm."""
    sides = [(0, -n % size) for n in images.shape[2:]]
    x = conv(np.pad(images, [(0, 0), (0, 0), *sides]), state, "patch_embed.proj", size, 0)
    return layer_norm(np.moveaxis(x, 1, -1), state, "patch_embed.norm")


def nat(images: Array, state: State, kernel_size: int, dilations: Sequence[Sequence[int]]) -> list[Array]:
    """[batch, 3, X, Y] to what leaves the blocks of every level, [batch, X', Y', C]."""
    x = conv(images, state, "patch_embed.proj.0", 2, 1)
    x = np.moveaxis(conv(x, state, "patch_embed.proj.1", 2, 1), 1, -1)
    x = layer_norm(x, state, "patch_embed.norm")
    maps = []
    for i, level in enumerate(dilations):
        for j, dilation in enumerate(level):
            x = block(x, state, f"levels.{i}.blocks.{j}", kernel_size, dilation)
        maps.append(x)
        if i + 1 < len(dilations):
            x = conv(np.moveaxis(x, -1, 1), state, f"levels.{i}.downsample.reduction", 2, 1)
            x = layer_norm(np.moveaxis(x, 1, -1), state, f"levels.{i}.downsample.norm")
    return maps


def dinat_s(images: Array, state: State, kernel_size: int, dilations: Sequence[Sequence[int]]) -> list[Array]:
    """The same for DiNAT_s: patches of 4 pixels, and Swin's merging of 2 x 2 tokens."""
    x = patches(images, state, 4)
    maps = []
    for i, level in enumerate(dilations):
        for j, dilation in enumerate(level):
            x = block(x, state, f"layers.{i}.blocks.{j}", kernel_size, dilation)
        maps.append(x)
        if i + 1 < len(dilations):
            x = np.pad(x, [(0, 0), *((0, n % 2) for n in x.shape[1:3]), (0, 0)])
            x = np.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = layer_norm(x, state, f"layers.{i}.downsample.norm")
            x = linear(x, state, f"layers.{i}.downsample.reduction")
    return maps


def isotropic(images: Array, state: State, kernel_size: int, dilations: Sequence[int], patch: int) -> Array:
    """[batch, 3, X, Y] to what leaves the last block, [batch, X', Y', C]."""
    x = patches(images, state, patch)
    for j, dilation in enumerate(dilations):
        x = block(x, state, f"layers.{j}", kernel_size, dilation)
    return x


# Shapes of the arrays, by their published names.


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _block_shapes(name: str, features: int, heads: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    hidden, entries = int(sizes["mlp_ratio"] * features), 2 * sizes["kernel_size"] - 1
    shapes = {
        **_with_bias(f"{name}.norm1", features),
        **_with_bias(f"{name}.attn.qkv", 3 * features, features),
        f"{name}.attn.rpb": (heads, entries, entries),
        **_with_bias(f"{name}.attn.proj", features, features),
        **_with_bias(f"{name}.norm2", features),
        **_with_bias(f"{name}.mlp.fc1", hidden, features),
        **_with_bias(f"{name}.mlp.fc2", features, hidden),
    }
    if sizes.get("layer_scale"):
        shapes |= {f"{name}.gamma1": (features,), f"{name}.gamma2": (features,)}
    return shapes


def _classifier_shapes(features: int, classes: int) -> dict[str, Any]:
    return {**_with_bias("norm", features), **_with_bias("head", classes, features)}


def shapes(kind: str, sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of "nat" or "dinat_s"; `sizes` are the fields of a config."""
    first, levels = sizes["embed_dim"], {"nat": "levels", "dinat_s": "layers"}[kind]
    features = [first * 2**i for i in range(len(sizes["depths"]))]
    found: dict[str, Any] = dict(_with_bias("patch_embed.norm", first))
    if kind == "nat":
        found |= _with_bias("patch_embed.proj.0", first // 2, 3, 3, 3)
        found |= _with_bias("patch_embed.proj.1", first, first // 2, 3, 3)
    else:
        found |= _with_bias("patch_embed.proj", first, 3, 4, 4)
    for i, width in enumerate(features):
        for j in range(sizes["depths"][i]):
            found |= _block_shapes(f"{levels}.{i}.blocks.{j}", width, sizes["num_heads"][i], sizes)
        if i + 1 < len(features):
            down = f"{levels}.{i}.downsample"
            reduction = (2 * width, width, 3, 3) if kind == "nat" else (2 * width, 4 * width)
            found[f"{down}.reduction.weight"] = reduction
            found |= _with_bias(f"{down}.norm", 2 * width if kind == "nat" else 4 * width)
    return found | _classifier_shapes(features[-1], sizes["num_classes"])


def isotropic_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, patch = sizes["embed_dim"], sizes["patch_size"]
    found: dict[str, Any] = _with_bias("patch_embed.proj", width, 3, patch, patch)
    found |= _with_bias("patch_embed.norm", width)
    for j in range(sizes["depth"]):
        found |= _block_shapes(f"layers.{j}", width, sizes["num_heads"], sizes)
    return found | _classifier_shapes(width, sizes["num_classes"])


def random_state(shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, Array]:
    """Random float32 values that keep activations of the order of 1 and every array noticeable.

    Tokens begin with small ones: there the epsilon of their norm is noticeable too.
    """

    def value(name: str, shape: tuple[int, ...]) -> Array:
        x = rng.standard_normal(shape)
        if "proj.1." in name or "patch_embed.proj.w" in name or "patch_embed.proj.b" in name:
            return 0.01 * x
        if len(shape) == 1 or "rpb" in name:
            return 0.5 * x + name.endswith(("norm.weight", "norm1.weight", "norm2.weight"))
        return x / np.sqrt(np.prod(shape[1:]))

    return {name: value(name, shape).astype(np.float32) for name, shape in shapes.items()}


def in_transformers(state: State, prefix: str) -> dict[str, Array]:
    """NAT's arrays under the names of the transformers library, with query, key and value apart."""
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "attn.rpb": "attention.self.rpb",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed: dict[str, Array] = {}
    for name, x in state.items():
        if name.startswith("head."):
            renamed[name.replace("head", "classifier")] = x
        elif name.startswith("norm."):
            renamed[prefix + "layernorm" + name.removeprefix("norm")] = x
        elif name.startswith("patch_embed."):
            tail = name.removeprefix("patch_embed.").replace("proj", "patch_embeddings.projection")
            renamed[f"{prefix}embeddings.{tail}"] = x
        elif "blocks" not in name:
            renamed[f"{prefix}encoder.{name}"] = x
        elif name.endswith("gamma1"):
            both = np.stack([x, state[name[:-1] + "2"]])
            place = name.removesuffix("gamma1").replace("blocks", "layers")
            renamed[f"{prefix}encoder.{place}layer_scale_parameters"] = both
        elif ".attn.qkv." in name:
            place = f"{prefix}encoder.{name.replace('blocks', 'layers')}"
            for part, values in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                renamed[place.replace("attn.qkv", f"attention.self.{part}")] = values
        elif not name.endswith("gamma2"):
            for own, other in parts.items():
                name = name.replace(f".{own}", f".{other}")
            renamed[f"{prefix}encoder.{name.replace('blocks', 'layers')}"] = x
    return renamed

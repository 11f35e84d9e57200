# SPDX-License-Identifier: Apache-2.0
"""Names in checkpoints of StyleNAT's generator, in both layouts.

The original layout has one positional bias for neighbouring heads with the same window. The legacy one, that
of the published FFHQ files, always has two, of half the heads each, also where both have the same window.

Files hold the running mean of the generator, which is what images are drawn with, under "g_ema".
"""

import itertools
from typing import Any

import numpy as np

from flax_layers.groups import Group
from flax_layers.models.stylenat import BLOCKS, FIRST_SIDE, StyleNAT
from flax_layers.pretrained.rules import (
    Array,
    Rule,
    Table,
    affine,
    heads_in,
    heads_out,
    linear,
    norm,
    relative_positions,
    same,
)

NESTED = (("state_dicts", "g_ema"), ("g_ema",))


def original(model: StyleNAT) -> Table:
    """The layout that the authors' code writes."""
    rules = []
    for level in range(1, len(model.levels)):
        runs = itertools.groupby(_groups(model, level), lambda group: group.neighborhood)
        for number, (_, run) in enumerate(runs):
            rules += _biases(level, f"rpb.{number}", list(run))
    return _table(model, rules)


def legacy(model: StyleNAT) -> Table:
    """The layout of the published FFHQ files; it is meant for two groups of heads in a level."""
    rules = []
    for level in range(1, len(model.levels)):
        for number, group in enumerate(_groups(model, level)):
            rules += _biases(level, f"rpb{number}", [group])
    return _table(model, rules)


def _groups(model: StyleNAT, level: int) -> tuple[Group, ...]:
    """Of heads, in all blocks of a level."""
    attn: Any = model.levels[level].blocks[0].attn
    groups: tuple[Group, ...] = attn.groups
    return groups


def _biases(level: int, name: str, groups: list[Group]) -> list[Rule]:
    """The biases of some groups, whose heads are neighbours, from one published array."""

    def rule(group: Group) -> Rule:
        first = group.start - groups[0].start

        def own(x: Array) -> Array:
            return x[first : first + group.stop - group.start]

        return Rule(
            f"layers.{level}.blocks.{{j}}.attn.{name}",
            f"levels.{level}.blocks.{{j}}.attn.{group.bias_name}",
            own if len(groups) > 1 else same,
            same,
        )

    return [rule(group) for group in groups]


def _table(model: StyleNAT, biases: list[Rule]) -> Table:
    config = model.config
    rules = [Rule("input.input", "input", _to_tokens, _from_tokens), *_RGB, *biases]
    # Number 0 is the norm of the random vector, which has no parameters.
    for i in range(config.mapping_depth):
        rules += affine(f"style.{i + 1}", f"style.{i}")
    constants: dict[str, Array] = {}
    arbitrary: dict[str, Array] = {}
    last = len(config.features) - 1
    for i in range(last + 1):
        rules += _block(f"layers.{i}.blocks.{{j}}", f"levels.{i}.blocks.{{j}}", config.num_heads(i))
    for i in range(last):
        rules += _upsample(f"layers.{i}.upsample", f"levels.{i}.upsample")
        constants[f"to_rgbs.{i}.upsample.kernel"] = _FILTER
        arbitrary[f"layers.{i}.upsample.sin_pos_embed._float_tensor"] = np.zeros(1, np.float32)
    for j in range(BLOCKS):
        numbers = relative_positions(FIRST_SIDE)
        constants[f"layers.0.blocks.{j}.attn.relative_position_index"] = numbers
    return Table(rules, constants, arbitrary)


def _block(published: str, path: str, heads: int) -> list[Rule]:
    attn, own = f"{published}.attn", f"{path}.attn"
    return [
        *affine(f"{published}.norm1.style", f"{path}.norm1.style"),
        *heads_in(f"{attn}.qkv", own, heads, part="weight"),
        *heads_in(f"{attn}.qkv", own, heads, part="bias"),
        Rule(f"{attn}.rpb", f"{own}.rpb"),
        heads_out(f"{attn}.proj", f"{own}.out", heads),
        Rule(f"{attn}.proj.bias", f"{own}.out.bias"),
        *affine(f"{published}.norm2.style", f"{path}.norm2.style"),
        *affine(f"{published}.mlp.fc1", f"{path}.mlp.fc1"),
        *affine(f"{published}.mlp.fc2", f"{path}.mlp.fc2"),
    ]


def _upsample(published: str, path: str) -> list[Rule]:
    return [
        *norm(f"{published}.norm", f"{path}.norm"),
        linear(f"{published}.reduction", f"{path}.reduction"),
        Rule(f"{published}.alpha", f"{path}.alpha"),
    ]


def _to_tokens(x: Array) -> Array:
    """[1, C, X, Y] to [X, Y, C]."""
    tokens: Array = np.moveaxis(x, 1, -1)[0]
    return tokens


def _from_tokens(x: Array) -> Array:
    return np.moveaxis(x, -1, 0)[None]


# Interpolation of the image between the levels.
_FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 16
_RGB = [
    Rule(
        "to_rgbs.{i}.conv.weight",
        "to_rgbs.{i}.conv.kernel",
        lambda x: x[:, :, 0, 0].T,
        lambda x: x.T[:, :, None, None],
    ),
    Rule("to_rgbs.{i}.conv.bias", "to_rgbs.{i}.conv.bias"),
    Rule("to_rgbs.{i}.bias", "to_rgbs.{i}.bias", np.ravel, lambda x: x.reshape(1, -1, 1, 1)),
]

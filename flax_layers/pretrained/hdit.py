# SPDX-License-Identifier: Apache-2.0
"""Names in checkpoints of HDiT ("image_transformer_v2").

Training files hold the state under "model" and its running mean, which is what samples are drawn with, under
"model_ema"; inference files are that mean alone. Older files of the same type have other conditioning, and
other names.
"""

import numpy as np

from flax_layers.models.hdit import HDiT, Level
from flax_layers.models.hdit_blocks import AxialRoPE
from flax_layers.pretrained.rules import Rule, Table, heads_in, heads_out, linear

NESTED = (("model_ema",), ("model",))


def original(model: HDiT) -> Table:
    """The rules for a model, and the frequencies of its rotary positions."""
    levels = model.config.levels
    places = [f"{way}_levels.{i}" for i in range(len(levels) - 1) for way in ("down", "up")]
    places.append("mid_level")
    sizes = [level for level in levels[:-1] for _ in range(2)] + [levels[-1]]
    rules = [*_OUTER, *_CONDITIONING]
    frequencies = {}
    for place, level in zip(places, sizes, strict=True):
        rules += _layer(f"{place}.{{k}}", level)
        for k in range(level.depth):
            rope = AxialRoPE(level.width // level.head_dim, level.head_dim)
            frequencies[f"{place}.{k}.self_attn.pos_emb.freqs"] = rope.frequencies.astype(np.float32)
    return Table(rules, frequencies)


def _layer(place: str, level: Level) -> list[Rule]:
    heads = level.width // level.head_dim
    attn = f"{place}.self_attn"
    return [
        linear(f"{attn}.norm.linear", f"{place}.norm1.linear"),
        *heads_in(f"{attn}.qkv_proj", f"{place}.attn", heads, part="weight"),
        Rule(f"{attn}.scale", f"{place}.attn.scale"),
        heads_out(f"{attn}.out_proj", f"{place}.attn.out", heads),
        linear(f"{place}.ff.norm.linear", f"{place}.norm2.linear"),
        linear(f"{place}.ff.up_proj", f"{place}.mlp.up"),
        linear(f"{place}.ff.down_proj", f"{place}.mlp.down"),
    ]


_OUTER = [
    linear("patch_in.proj", "patch_in"),
    linear("patch_out.proj", "patch_out"),
    Rule("out_norm.scale", "out_norm.scale"),
    linear("merges.{i}.proj", "merges.{i}"),
    linear("splits.{i}.proj", "splits.{i}.proj"),
    Rule("splits.{i}.fac", "splits.{i}.fac"),
]
_CONDITIONING = [
    Rule("time_emb.weight", "conditioning.time_emb.weight"),
    linear("time_in_proj", "conditioning.time_in_proj"),
    Rule("aug_emb.weight", "conditioning.aug_emb.weight"),
    linear("aug_in_proj", "conditioning.aug_in_proj"),
    Rule("class_emb.weight", "conditioning.class_emb.embedding"),
    linear("mapping_cond_in_proj", "conditioning.mapping_cond_in_proj"),
    Rule("mapping.in_norm.scale", "conditioning.mapping.in_norm.scale"),
    Rule("mapping.out_norm.scale", "conditioning.mapping.out_norm.scale"),
    Rule("mapping.blocks.{k}.norm.scale", "conditioning.mapping.norms.{k}.scale"),
    linear("mapping.blocks.{k}.up_proj", "conditioning.mapping.mlps.{k}.up"),
    linear("mapping.blocks.{k}.down_proj", "conditioning.mapping.mlps.{k}.down"),
]

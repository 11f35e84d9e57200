# SPDX-License-Identifier: Apache-2.0
"""Names in checkpoints of NAT, DiNAT, DiNAT_s and the isotropic models.

"original" are the names of the authors' code for classification and detection; NAT and DiNAT are also there
in those of the transformers library, under "dinat.", "nat.", or nothing in front of them (a backbone).
"""

from collections.abc import Callable

from flax_layers.models.dinat_s import DiNATs
from flax_layers.models.isotropic import Isotropic
from flax_layers.models.nat import NAT
from flax_layers.models.pyramid import PyramidConfig
from flax_layers.pretrained.rules import (
    Rule,
    Table,
    affine,
    conv,
    head_in,
    heads_in,
    heads_out,
    linear,
    norm,
    relative_positions,
)

Rules = list[Rule]


def _block(place: str, path: str, heads: int) -> Rules:
    return [
        *norm(f"{place}.norm1", f"{path}.norm1"),
        *heads_in(f"{place}.attn.qkv", f"{path}.attn", heads, part="weight"),
        *heads_in(f"{place}.attn.qkv", f"{path}.attn", heads, part="bias"),
        Rule(f"{place}.attn.rpb", f"{path}.attn.rpb"),
        heads_out(f"{place}.attn.proj", f"{path}.attn.out", heads),
        Rule(f"{place}.attn.proj.bias", f"{path}.attn.out.bias"),
        *norm(f"{place}.norm2", f"{path}.norm2"),
        *affine(f"{place}.mlp.fc1", f"{path}.mlp.fc1"),
        *affine(f"{place}.mlp.fc2", f"{path}.mlp.fc2"),
        Rule(f"{place}.gamma1", f"{path}.scale1.gamma"),
        Rule(f"{place}.gamma2", f"{path}.scale2.gamma"),
    ]


_CLASSIFIER = [*norm("norm", "classifier.norm"), *affine("head", "classifier.head")]


def _levels(config: PyramidConfig, place: str, block: Callable[[str, str, int], Rules]) -> Rules:
    """Blocks of all levels; `place` is their published name, after the number of the level in braces."""
    rules = []
    for level, heads in enumerate(config.num_heads):
        rules += block(place.format(level), f"levels.{level}.blocks.{{j}}", heads)
    return rules


def nat(model: NAT) -> Table:
    """NAT and DiNAT, as their authors name them."""
    return Table(
        [
            *conv("patch_embed.proj.0", "patch_embed.conv1"),
            *conv("patch_embed.proj.1", "patch_embed.conv2"),
            *norm("patch_embed.norm", "patch_embed.norm"),
            *_levels(model.config, "levels.{}.blocks.{{j}}", _block),
            *conv("levels.{i}.downsample.reduction", "levels.{i}.downsample.reduction"),
            *norm("levels.{i}.downsample.norm", "levels.{i}.downsample.norm"),
            *norm("norm{i}", "norms.{i}"),
            *_CLASSIFIER,
        ]
    )


def dinat_s(model: DiNATs) -> Table:
    """DiNAT_s, as its authors name it."""
    return Table(
        [
            *conv("patch_embed.proj", "patch_embed.proj"),
            *norm("patch_embed.norm", "patch_embed.norm"),
            *_levels(model.config, "layers.{}.blocks.{{j}}", _block),
            linear("layers.{i}.downsample.reduction", "levels.{i}.downsample.reduction"),
            *norm("layers.{i}.downsample.norm", "levels.{i}.downsample.norm"),
            *norm("norm{i}", "norms.{i}"),
            *_CLASSIFIER,
        ]
    )


def isotropic(model: Isotropic) -> Table:
    """The isotropic models, as their authors name them."""
    return Table(
        [
            *conv("patch_embed.proj", "patch_embed.proj"),
            *norm("patch_embed.norm", "patch_embed.norm"),
            *_block("layers.{j}", "blocks.{j}", model.config.num_heads),
            *_CLASSIFIER,
        ]
    )


def vit_rpb(model: Isotropic) -> Table:
    """The isotropic models with full attention, whose files hold the numbers of relative positions too."""
    numbers = relative_positions(model.config.kernel_size)
    places = range(model.config.depth)
    return Table(
        isotropic(model).rules, {f"layers.{j}.attn.relative_position_index": numbers for j in places}
    )


def _transformers_block(place: str, path: str, heads: int) -> Rules:
    own, scales = f"{place}.attention.self", f"{place}.layer_scale_parameters"
    return [
        *norm(f"{place}.layernorm_before", f"{path}.norm1"),
        *head_in(f"{own}.query", f"{path}.attn.query", heads),
        *head_in(f"{own}.key", f"{path}.attn.key", heads),
        *head_in(f"{own}.value", f"{path}.attn.value", heads),
        Rule(f"{own}.rpb", f"{path}.attn.rpb"),
        heads_out(f"{place}.attention.output.dense", f"{path}.attn.out", heads),
        Rule(f"{place}.attention.output.dense.bias", f"{path}.attn.out.bias"),
        *norm(f"{place}.layernorm_after", f"{path}.norm2"),
        *affine(f"{place}.intermediate.dense", f"{path}.mlp.fc1"),
        *affine(f"{place}.output.dense", f"{path}.mlp.fc2"),
        Rule(scales, f"{path}.scale1.gamma", lambda x: x[0], lambda x: x[None]),
        Rule(scales, f"{path}.scale2.gamma", lambda x: x[1], lambda x: x[None]),
    ]


def transformers(prefix: str) -> Callable[[NAT], Table]:
    """NAT and DiNAT, as the transformers library names them, with "dinat.", "nat." or "" in front."""
    levels = f"{prefix}encoder.levels"
    patches = f"{prefix}embeddings.patch_embeddings.projection"

    def table(model: NAT) -> Table:
        maps = range(len(model.config.depths))
        norms = [norm(f"{prefix}hidden_states_norms.stage{i + 1}", f"norms.{i}") for i in maps]
        return Table(
            [
                *conv(f"{patches}.0", "patch_embed.conv1"),
                *conv(f"{patches}.1", "patch_embed.conv2"),
                *norm(f"{prefix}embeddings.norm", "patch_embed.norm"),
                *_levels(model.config, f"{levels}.{{}}.layers.{{{{j}}}}", _transformers_block),
                *conv(f"{levels}.{{i}}.downsample.reduction", "levels.{i}.downsample.reduction"),
                *norm(f"{levels}.{{i}}.downsample.norm", "levels.{i}.downsample.norm"),
                *(rule for rules in norms for rule in rules),
                *norm(f"{prefix}layernorm", "classifier.norm"),
                *affine("classifier", "classifier.head"),
            ]
        )

    return table

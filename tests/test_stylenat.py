# SPDX-License-Identifier: Apache-2.0
"""StyleNAT: the published sizes, and the published forward pass from published names, in both layouts."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_layers import pretrained
from flax_layers.models.stylenat import VARIANTS, EqualLinear, StyleNAT, StyleNATConfig
from flax_layers.pretrained import rules, stylenat

from . import helpers, published_generative

# 4 x 4, 8 x 8 and 16 x 16 tokens; 6, 4 and 2 heads
SMALL = StyleNATConfig(
    (24, 16, 8),
    dilations=((1, 1), (1, 4)),
    kernel_size=3,
    head_dim=4,
    min_heads=2,
    style_features=10,
    mapping_depth=2,
    mapping_rate=0.1,
    mlp_ratio=2,
)
HEADS = [6, 4, 2]
# Three groups in five heads: 1, 2 and 2 of them.
UNEVEN = StyleNATConfig((8, 10), ((1, 2, 1),), 3, head_dim=2, style_features=6, mapping_depth=1)


def abstract(config, **options):
    return nnx.eval_shape(lambda: StyleNAT(config, rngs=nnx.Rngs(0), **options))


@pytest.mark.some(1)
@pytest.mark.parametrize(
    ("name", "parameters", "tensors"), [("ffhq_256", 48_921_000, 254), ("ffhq_1024", 49_452_934, 324)]
)
def test_published_sizes(name, parameters, tensors):
    """In parameters, and in arrays of a file that are parameters."""
    model = abstract(VARIANTS[name])
    found = arrays(model)
    assert sum(math.prod(x.shape) for x in found.values()) == parameters
    for layout, count in ((stylenat.original, tensors), (stylenat.legacy, tensors + 2)):
        table = layout(model)
        assert len({rules.published_name(table, path)[0] for path in found}) == count


def arrays(model):
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): x.get_value() for path, x in flat}


def published_shapes(layout):
    """Names and shapes in a file for the model SMALL."""
    features, s = [24, 16, 8], 10
    shapes = {"input.input": (1, 24, 4, 4)}
    for i in (1, 2):
        shapes |= {f"style.{i}.weight": (s, s), f"style.{i}.bias": (s,)}
    for i, (c, heads) in enumerate(zip(features, HEADS, strict=True)):
        for j in (0, 1):
            block = f"layers.{i}.blocks.{j}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.style.weight": (2 * c, s), f"{block}.{norm}.style.bias": (2 * c,)}
            for name, out, size in (
                ("attn.qkv", 3 * c, c),
                ("attn.proj", c, c),
                ("mlp.fc1", 2 * c, c),
                ("mlp.fc2", c, 2 * c),
            ):
                shapes |= {f"{block}.{name}.weight": (out, size), f"{block}.{name}.bias": (out,)}
            if i == 0:
                shapes[f"{block}.attn.rpb"] = (heads, 7, 7)
            elif layout == "legacy":
                shapes |= {f"{block}.attn.rpb{g}": (heads // 2, 5, 5) for g in (0, 1)}
            elif i == 1:
                shapes[f"{block}.attn.rpb.0"] = (heads, 5, 5)
            else:
                shapes |= {f"{block}.attn.rpb.{g}": (heads // 2, 5, 5) for g in (0, 1)}
        following = features[min(i + 1, 2)]
        if i < 2:
            up = f"layers.{i}.upsample"
            shapes |= {f"{up}.norm.weight": (c,), f"{up}.norm.bias": (c,), f"{up}.alpha": (1,)}
            shapes[f"{up}.reduction.weight"] = (following, c)
        rgb = f"to_rgbs.{i}"
        shapes |= {f"{rgb}.conv.weight": (3, following, 1, 1), f"{rgb}.conv.bias": (3,)}
        shapes[f"{rgb}.bias"] = (1, 3, 1, 1)
    return shapes


def file(layout, rng):
    """A synthetic one: everything random but what the published modules compute."""
    state = {}
    for name, shape in published_shapes(layout).items():
        fan = math.prod(shape[1:]) if name.endswith("weight") and "style" not in name else 1
        state[name] = np.float32(rng.standard_normal(shape) / math.sqrt(fan))
    positions = np.stack(np.divmod(np.arange(16), 4))
    row, column = positions[:, None, :] - positions[:, :, None] + 3  # key - query
    for j in (0, 1):
        state[f"layers.0.blocks.{j}.attn.relative_position_index"] = 7 * row + column
    for i in (0, 1):
        state[f"to_rgbs.{i}.upsample.kernel"] = np.float32(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16)
        state[f"layers.{i}.upsample.sin_pos_embed._float_tensor"] = np.zeros(1, np.float32)
    return state


def loaded(state, **options):
    model = abstract(SMALL, **options)
    pretrained.load(model, state)
    return model


LAYOUTS = ("original", "legacy")


@pytest.mark.some(1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_forward_pass(layout, rng):
    """Names, layouts and every operation."""
    state = file(layout, rng)
    z = np.float32(rng.standard_normal((2, 10)))
    dilations = [[1], [1, 4]]  # in the first level with windows all heads have the same
    expected = published_generative.StyleNAT(state, HEADS, dilations, 3, 0.1)(np.float64(z))
    assert expected.shape == (2, 16, 16, 3)
    assert helpers.relative_error(nnx.jit(loaded(state))(z), expected) < 1e-5


@pytest.mark.some(0)
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_half_precision(dtype, rng):
    """Close to single precision."""
    state, z = file("original", rng), jnp.asarray(rng.standard_normal((2, 10)), jnp.float32)
    found = nnx.jit(loaded(state, dtype=dtype))(z.astype(dtype))
    assert found.dtype == dtype
    assert helpers.relative_error(found, nnx.jit(loaded(state))(z)) < 8e-2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_written_as_they_were(layout, rng):
    """The arrays are found inside of a training file, and the layout by its names."""
    state = file(layout, rng)
    inside = {
        "original": {"state_dicts": {"g": {}, "g_ema": state}},
        "legacy": {"g_ema": state, "args": None},
    }
    written = pretrained.published(loaded(inside[layout]), layout)
    helpers.assert_identical({name: np.asarray(x) for name, x in written.items()}, state)


def test_one_error_names_all_that_does_not_fit(rng):
    state = file("original", rng)
    del state["layers.1.blocks.0.attn.qkv.bias"]
    state["layers.2.blocks.1.attn.rpb.1"] = np.zeros((1, 13, 13))
    state["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((16, 16), int)
    state["layers.2.blocks.1.attn.rpb.2"] = np.zeros((1, 5, 5))
    with pytest.raises(ValueError, match="published arrays do not fit the model") as caught:
        loaded(state)
    assert set(str(caught.value).splitlines()[1:]) == {
        "  layers.1.blocks.0.attn.qkv.bias is missing",
        "  layers.2.blocks.1.attn.rpb.1 (1, 13, 13) cannot become levels.2.blocks.1.attn.rpb_1 (1, 5, 5)",
        "  layers.0.blocks.0.attn.relative_position_index has other values than this model computes",
        "  layers.2.blocks.1.attn.rpb.2 (1, 5, 5) is not expected",
    }


def test_uneven_groups():
    """The last groups have what is left over."""
    shapes = {path: x.shape for path, x in arrays(abstract(UNEVEN)).items()}
    assert [shapes[f"levels.1.blocks.0.attn.rpb_{g}"][0] for g in range(3)] == [1, 2, 2]


def test_blocks_are_computed_again():
    """One checkpoint for each of the six blocks."""
    graph, state = nnx.split(abstract(SMALL, remat=True))
    program = jax.make_jaxpr(lambda state, z: nnx.merge(graph, state)(z))(state, jnp.zeros((1, 10)))
    assert len(re.findall(r"= (?:checkpoint|remat\d*)\[", str(program))) == 6


def test_initial_values():
    """Equalized layers begin with deviation 1 / rate, and give that of their input."""
    options = {"dtype": None, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    layer = EqualLinear(100, 200, rate=0.01, **options)
    assert abs(np.std(layer.kernel[...]) - 100) < 5
    assert abs(np.std(layer(jax.random.normal(jax.random.key(0), (20, 100)))) - 1) < 0.1


def test_errors():
    with pytest.raises(ValueError, match=re.escape("dilations ((1,),) must have one tuple for each level")):
        StyleNATConfig((8, 8, 8), ((1,),))
    with pytest.raises(ValueError, match=re.escape("dilations (1, 3) of level 1 do not fit into 8 tokens")):
        StyleNATConfig((8, 8), ((1, 3),), kernel_size=3)
    with pytest.raises(ValueError, match=re.escape("styles (1, 7) must be [batch..., 10]")):
        nnx.eval_shape(lambda model: model.synthesis(jnp.zeros((1, 7))), abstract(SMALL))

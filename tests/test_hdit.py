# SPDX-License-Identifier: Apache-2.0
"""HDiT: the published sizes, the published forward pass from published names, and what may be trained."""

import collections
import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_layers import pretrained
from flax_layers.models.hdit import VARIANTS, HDiT, HDiTConfig, Level, Mapping, param_groups
from flax_layers.models.hdit_blocks import Constant

from . import helpers, published_generative

LEVELS = (Level(1, 16, 3, head_dim=8), Level(1, 24, 2, head_dim=8), Level(2, 16, "full", head_dim=16))
SMALL = HDiTConfig(LEVELS, Mapping(12, 2), patch_size=2, channels=2, num_classes=3, condition_features=5)
TINY = HDiTConfig(
    (Level(1, 8, 3, head_dim=8, dropout=0.5), Level(1, 8, "full", head_dim=8)), Mapping(8, 1), patch_size=2
)
# For digits of 28 x 28 pixels; not published.
DIGITS = HDiTConfig(
    (Level(1, 64, 7, head_dim=32), Level(2, 128, "full", head_dim=32)),
    Mapping(64, 1),
    patch_size=2,
    channels=1,
    num_classes=10,
)
COUNTS = {
    "oxford_flowers_256": 22_361_274,
    "imagenet_128": 117_003_805,
    "imagenet_256": 557_416_522,
    "ffhq_1024": 85_079_300,
    "afhq_512": 75_053_291,
    "afhq_512_wide": 90_990_979,
    "cifar_10": 20_981_809,
    "mnist": 9_187_360,
}


def count(model):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def abstract(config, **options):
    return nnx.eval_shape(lambda: HDiT(config, rngs=nnx.Rngs(0), **options))


@pytest.mark.some(1)
@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name):
    assert count(abstract(VARIANTS[name])) == COUNTS[name]


def test_size_of_the_model_for_digits():
    assert count(abstract(DIGITS)) == 693_709


def arrays(model):
    """Parameters and constants by path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, Constant)))
    return {".".join(map(str, path)): x.get_value() for path, x in state}


def published_shapes():
    """Names and shapes in a file for the model SMALL, without the frequencies."""
    m, shapes = 12, {}

    def layers(place, level):
        w = level.width
        for k in range(level.depth):
            shapes.update(
                {
                    f"{place}.{k}.self_attn.norm.linear.weight": (w, m),
                    f"{place}.{k}.self_attn.qkv_proj.weight": (3 * w, w),
                    f"{place}.{k}.self_attn.scale": (w // level.head_dim,),
                    f"{place}.{k}.self_attn.out_proj.weight": (w, w),
                    f"{place}.{k}.ff.norm.linear.weight": (w, m),
                    f"{place}.{k}.ff.up_proj.weight": (6 * w, w),
                    f"{place}.{k}.ff.down_proj.weight": (w, 3 * w),
                }
            )

    for i, (level, deeper) in enumerate(itertools.pairwise(LEVELS)):
        layers(f"down_levels.{i}", level)
        layers(f"up_levels.{i}", level)
        shapes[f"merges.{i}.proj.weight"] = (deeper.width, 4 * level.width)
        shapes[f"splits.{i}.proj.weight"] = (4 * level.width, deeper.width)
        shapes[f"splits.{i}.fac"] = (1,)
    layers("mid_level", LEVELS[-1])
    for k in range(2):
        shapes[f"mapping.blocks.{k}.norm.scale"] = (m,)
        shapes[f"mapping.blocks.{k}.up_proj.weight"] = (6 * m, m)
        shapes[f"mapping.blocks.{k}.down_proj.weight"] = (m, 3 * m)
    return shapes | {
        **{"patch_in.proj.weight": (16, 8), "patch_out.proj.weight": (8, 16), "out_norm.scale": (16,)},
        **{"time_emb.weight": (m // 2, 1), "aug_emb.weight": (m // 2, 9)},
        **{"time_in_proj.weight": (m, m), "aug_in_proj.weight": (m, m)},
        **{"class_emb.weight": (4, m), "mapping_cond_in_proj.weight": (m, 5)},
        **{"mapping.in_norm.scale": (m,), "mapping.out_norm.scale": (m,)},
    }


def frequencies(level):
    """pi 10^n, n evenly spaced in [0, 1); neighbouring ones belong to different heads."""
    heads, own = level.width // level.head_dim, level.head_dim // 8
    return np.pi * np.logspace(0, 1, heads * own, endpoint=False).reshape(own, heads).T


@pytest.fixture
def state(rng):
    """A synthetic file: everything random, also what begins with zeros."""
    shapes = published_shapes()
    found = {
        name: np.float32(rng.standard_normal(shape) / math.sqrt(shape[-1])) for name, shape in shapes.items()
    }
    for name in list(found):
        if name.endswith("self_attn.scale"):
            found[name] = np.float32(10 + rng.standard_normal(shapes[name]))
            place, i, *_ = name.split(".")
            level = LEVELS[2 if place == "mid_level" else int(i)]
            found[name.replace("scale", "pos_emb.freqs")] = np.float32(frequencies(level))
    return found


def loaded(state, **options):
    """A model with the arrays of a file."""
    model = abstract(SMALL, **options)
    pretrained.load(model, state)
    return model


@pytest.fixture
def inputs(rng):
    """Two images, longer along one side, with all their conditions."""
    return {
        "images": np.float32(rng.standard_normal((2, 16, 24, 2))),
        "sigma": np.float32([0.3, 40.0]),
        "classes": np.array([1, 3]),
        "augmentation": np.float32(rng.standard_normal((2, 9))),
        "condition": np.float32(rng.standard_normal((2, 5))),
    }


def test_published_forward_pass(state, inputs):
    """Names, layouts and every operation."""
    levels = [(level.depth, level.head_dim, size) for level, size in zip(LEVELS, (3, 2, None), strict=True)]
    expected = published_generative.HDiT(state, levels, patch=2)(*inputs.values())
    model = loaded(state)
    assert helpers.relative_error(nnx.jit(model)(**inputs), expected) < 1e-5


def test_files_are_written_as_they_were(state):
    """From a training file the running mean is taken."""
    for source in (state, {"model": {}, "model_ema": state}):
        written = pretrained.published(loaded(source))
        helpers.assert_identical({name: np.asarray(x) for name, x in written.items()}, dict(state))


def test_one_error_names_all_that_does_not_fit(state):
    """What is missing, of another shape, of other values, or of an older kind of the same model."""
    del state["splits.1.fac"]
    state["out_norm.scale"] = np.zeros(17, np.float32)
    state["mid_level.0.self_attn.qkv_proj.weight"] = np.zeros((47, 16), np.float32)
    state["mid_level.1.self_attn.pos_emb.freqs"] = np.ones((1, 2), np.float32)
    state["pos_emb.weight"] = np.zeros((3, 2), np.float32)
    message = """published arrays do not fit the model:
  splits.1.fac is missing
  out_norm.scale (17,) cannot become out_norm.scale (16,)
  mid_level.0.self_attn.qkv_proj.weight (47, 16) cannot become mid_level.0.attn.query.kernel (16, 1, 16)
  mid_level.1.self_attn.pos_emb.freqs has other values than this model computes
  pos_emb.weight (3, 2) is not expected"""
    with pytest.raises(ValueError, match=r"(?s)published arrays do not fit") as caught:
        loaded(state)
    assert set(message.splitlines()) <= set(str(caught.value).splitlines())


def test_parameter_groups():
    """Every parameter has one; decay is for matrices, the mapping network has its own learning rate."""
    groups = nnx.to_flat_state(param_groups(abstract(SMALL)))
    found = {".".join(map(str, path)): group for path, group in groups}
    assert set(found) == {
        ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract(SMALL), nnx.Param))
    }
    plain = {name for name, group in found.items() if group == "plain"}
    assert {re.sub(r"\d+", "*", name) for name in plain} == {
        "conditioning.time_in_proj.kernel",
        "conditioning.aug_in_proj.kernel",
        "conditioning.mapping_cond_in_proj.kernel",
        "conditioning.class_emb.embedding",
        "down_levels.*.*.attn.scale",
        "up_levels.*.*.attn.scale",
        "mid_level.*.attn.scale",
        "splits.*.fac",
        "out_norm.scale",
    }
    assert {name.rsplit(".", 1)[1] for name, group in found.items() if group == "mapping_plain"} == {"scale"}
    mapping = [name for name, group in found.items() if group == "mapping_decayed"]
    assert all(".mapping.mlps." in name or ".linear.kernel" in name for name in mapping)
    assert collections.Counter(found.values())["mapping_decayed"] == 2 * 6 + 4


def without_dropout(config):
    """It has no states of random numbers, and so can be made without computing anything."""
    levels = tuple(dataclasses.replace(level, dropout=0.0) for level in config.levels)
    return dataclasses.replace(config, levels=levels)


def randomized(model, rng):
    """Everything random, also what begins with zeros."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, Constant)))
    random = [
        (path, x.replace(jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32))) for path, x in flat
    ]
    nnx.update(model, nnx.from_flat_state(random))
    return model


def test_a_new_model(rng):
    """It begins with zeros, its random constants are no parameters, and dropout is on until eval()."""
    model = nnx.jit(lambda: HDiT(TINY, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))()
    model.eval()
    images = jnp.asarray(rng.standard_normal((1, 12, 12, 3)), jnp.bfloat16)
    apply = nnx.jit(lambda model: model(images, 2.0))
    helpers.assert_identical(apply(model), jnp.zeros((1, 12, 12, 3), jnp.bfloat16))
    constants = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(model, Constant))}
    assert set(constants) == {"conditioning.time_emb.weight", "conditioning.aug_emb.weight"}
    assert all(np.std(x.get_value()) > 0 for x in constants.values())
    parameters = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert parameters == set(arrays(model)) - set(constants)
    randomized(model, rng)
    helpers.assert_identical(apply(model), apply(model))
    model.train()
    assert helpers.relative_error(apply(model), apply(model)) > 1e-3


@pytest.mark.some(0)
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_half_precision(dtype, rng):
    """Close to single precision."""
    images, seed = jnp.asarray(rng.standard_normal((1, 12, 12, 3)), jnp.float32), rng.integers(2**32)
    results = []
    for chosen in (jnp.float32, dtype):
        model = randomized(abstract(without_dropout(TINY), dtype=chosen), np.random.default_rng(seed))
        results.append(nnx.jit(model)(images.astype(chosen), 2.0))
    assert helpers.relative_error(results[1], results[0]) < 5e-2


def remat_model(rng, remat):
    return randomized(abstract(without_dropout(TINY), remat=remat), rng)


def test_layers_are_computed_again(rng):
    """One checkpoint for each of the three layers."""
    graph, state = nnx.split(remat_model(rng, True))
    run = lambda state, x: nnx.merge(graph, state)(x, 2.0)  # noqa: E731
    program = str(jax.make_jaxpr(run)(state, jnp.zeros((1, 12, 12, 3))))
    assert len(re.findall(r"= (?:checkpoint|remat\d*)\[", program)) == 3


@pytest.mark.some(0)
@pytest.mark.parametrize("policy", [True, jax.checkpoint_policies.save_only_these_names("jax_na_out")])
def test_layers_computed_again_have_the_same_gradients(policy, rng):
    images, seed = jnp.asarray(rng.standard_normal((1, 12, 12, 3)), jnp.float32), rng.integers(2**32)
    step = nnx.jit(nnx.value_and_grad(lambda model: jnp.sum(model(images, 2.0) ** 2)))
    results = [step(remat_model(np.random.default_rng(seed), remat)) for remat in (False, policy)]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert helpers.relative_error(b, a) < 1e-4


ERRORS = {
    "sides": ({"images": (1, 20, 16, 2)}, "sides (20, 16) of images must be multiples of 8; the nearest are"),
    "channels": ({"images": (1, 16, 16, 3)}, "must be [batch..., X, Y, 2]"),
    "no classes": (
        {"classes": None},
        "the model has classes, and they were not given; HDiTConfig.num",
    ),
    "no condition": ({"condition": None}, "the model has condition, and they were not given"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, message = ERRORS[name]
    given = {"images": (1, 16, 16, 2), "classes": 0, "condition": (1, 5), **changes}
    arguments = {
        "images": jnp.zeros(given["images"]),
        "sigma": jnp.ones(1),
        "classes": None if given["classes"] is None else jnp.zeros(1, int),
        "condition": None if given["condition"] is None else jnp.zeros(given["condition"]),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        nnx.eval_shape(lambda model: model(**arguments), abstract(SMALL))


def test_errors_of_configurations():
    with pytest.raises(ValueError, match="width 20 of a level must be a multiple of its head_dim 64"):
        Level(1, 20)
    config = HDiTConfig((Level(1, 12, head_dim=12),), Mapping(8, 1))
    with pytest.raises(ValueError, match="head_dim must be a multiple of 8, got 12; the nearest is 16"):
        abstract(config)
    small = HDiTConfig((Level(1, 8, 7, head_dim=8), Level(1, 8, "full", head_dim=8)), Mapping(8, 1))
    message = "images of sides (24, 32) have 6 tokens along a side of level 0, fewer than its kernel_size 7"
    with pytest.raises(ValueError, match=re.escape(message)):
        nnx.eval_shape(lambda model: model(jnp.zeros((24, 32, 3)), 1.0), abstract(small))
    plain = HDiTConfig((Level(1, 8, "full", head_dim=8),), Mapping(8, 1))
    with pytest.raises(ValueError, match="the model has no classes, and they were given"):
        nnx.eval_shape(lambda model: model(jnp.zeros((8, 8, 3)), 1.0, jnp.array(0)), abstract(plain))

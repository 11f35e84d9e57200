# SPDX-License-Identifier: Apache-2.0
"""Models of images: the published sizes and results, and the options of training."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jax_na
from flax_layers import pretrained
from flax_layers.models import blocks, dinat_s, isotropic, nat
from flax_layers.models.pyramid import alternating

from . import helpers, published_nat, small_models
from .small_models import MODELS, SCALED, SWIN

TINY = nat.NATConfig(8, (1,), (2,), mlp_ratio=2, kernel_size=3, num_classes=5)
pytestmark = pytest.mark.usefixtures("quick_compile")
# Millions of parameters, as published, and arrays of a checkpoint where their number is known.
PUBLISHED = {
    "nat_mini": (19.98, 253),
    "nat_tiny": (27.90, 409),
    "nat_small": (50.74, 469),
    "nat_base": (89.77, 469),
    "dinat_mini": (19.98, 253),
    "dinat_tiny": (27.90, 409),
    "dinat_small": (50.72, 409),
    "dinat_base": (89.77, 469),
    "dinat_large": (200.94, 409),
    "dinat_large_384": (200.94, 409),
    "dinat_large_384_11x11": (201.14, 409),
    "dinat_s_tiny": (28.29, None),
    "dinat_s_small": (49.61, None),
    "dinat_s_base": (87.77, None),
    "dinat_s_large": (196.53, None),
    "dinat_s_large_384": (196.53, None),
}
ISOTROPIC = {"small": 22, "base": 86}  # published without decimals
KINDS = {"nat": (nat.NAT, nat.VARIANTS), "dinat_s": (dinat_s.DiNATs, dinat_s.VARIANTS)}


def kind_of(variant):
    return "dinat_s" if variant in dinat_s.VARIANTS else "nat"


def size(shapes):
    return sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.parametrize("variant", PUBLISHED)
def test_variants_have_the_published_sizes(variant):
    """By the shapes of the checkpoints; the models are held against these below."""
    millions, arrays = PUBLISHED[variant]
    kind = kind_of(variant)
    shapes = published_nat.shapes(kind, dataclasses.asdict(KINDS[kind][1][variant]))
    assert round(size(shapes) / 1e6, 2) == millions
    assert arrays in (None, len(shapes))


def test_no_variant_is_left_out():
    assert {*nat.VARIANTS, *dinat_s.VARIANTS} == set(PUBLISHED)
    assert {name.rpartition("_")[2] for name in isotropic.VARIANTS} == set(ISOTROPIC)


@pytest.mark.some(2)
@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_of_the_model(variant):
    kind = kind_of(variant)
    model, variants = KINDS[kind]
    config = dataclasses.replace(variants[variant], drop_path=0)
    found = small_models.parameters(small_models.abstract(model, config))
    assert found == size(published_nat.shapes(kind, dataclasses.asdict(config)))


@pytest.mark.some(1)
@pytest.mark.parametrize("variant", isotropic.VARIANTS)
def test_parameters_of_isotropic_models(variant):
    config = dataclasses.replace(isotropic.VARIANTS[variant], drop_path=0)
    found = small_models.parameters(small_models.abstract(isotropic.Isotropic, config))
    assert found == size(published_nat.isotropic_shapes(dataclasses.asdict(config)))
    assert int(found / 1e6 + 0.1) == ISOTROPIC[variant.rpartition("_")[2]]


def test_dilations():
    """Those of the published models, which list them."""
    assert nat.VARIANTS["nat_base"].dilations is None
    assert nat.VARIANTS["dinat_mini"].dilations == ((1, 8, 1), (1, 4) * 2, (1, 2) * 3, (1,) * 5)
    assert nat.VARIANTS["dinat_large_384"].dilations == ((1, 13, 1), (1, 6) * 2, (1, 3) * 9, (1,) * 5)
    assert nat.VARIANTS["dinat_large_384_11x11"].dilations == ((1, 8, 1), (1, 4) * 2, (1, 2) * 9, (1,) * 5)
    assert dinat_s.VARIANTS["dinat_s_tiny"].dilations == ((1, 8), (1, 4), (1, 2) * 3, (1, 1))
    assert dinat_s.VARIANTS["dinat_s_large_384"].dilations == ((1, 13), (1, 6), (1, 3) * 9, (1, 1))
    assert alternating((2, 1), 12, 7) == ((1, 1), (1,))


def published_state(name, rng):
    config = MODELS[name][1]
    sizes = dataclasses.asdict(config)
    if name == "isotropic":
        shapes = published_nat.isotropic_shapes(sizes)
    else:
        shapes = published_nat.shapes("dinat_s" if name == "dinat_s" else "nat", sizes)
    return published_nat.random_state(shapes, rng)


def published_maps(name, images, state):
    """What leaves the blocks of every level, in NumPy."""
    config = MODELS[name][1]
    images = np.moveaxis(np.asarray(images, np.float64), -1, 1)
    if name == "isotropic":
        dilations = [1, config.dilation] * (config.depth // 2)
        return [published_nat.isotropic(images, state, config.kernel_size, dilations, config.patch_size)]
    function = published_nat.dinat_s if name == "dinat_s" else published_nat.nat
    return function(images, state, config.kernel_size, config.dilations or [[1] * n for n in config.depths])


@pytest.mark.parametrize("name", MODELS)
def test_results_are_the_published_ones(name, rng):
    """Weights with the published names and shapes give what the published architecture gives."""
    model, config, sides = MODELS[name]
    state, images = published_state(name, rng), small_models.images(rng, sides)
    model = small_models.abstract(model, config)
    pretrained.load(model, state)
    expected = published_nat.classified(published_maps(name, images, state)[-1], state)
    assert helpers.relative_error(small_models.forward(model, images), expected) < 1e-5


def test_features_of_all_levels(rng):
    """The weights of a classifier, and a norm of its own for every level."""
    state, images = published_state("dinat_s", rng), small_models.images(rng, (37, 42))
    norms = {
        f"norm{i}.{part}": rng.standard_normal(8 * 2**i) for i in range(2) for part in ("weight", "bias")
    }
    model = small_models.abstract(dinat_s.DiNATs, SWIN, features_only=True)
    with pytest.raises(ValueError, match=re.escape("head.weight (5, 16) is not expected")):
        pretrained.load(model, {**state, **norms})
    pretrained.load(model, {**state, **norms}, skip=("norm.*", "head.*"))
    maps = published_maps("dinat_s", images, state)
    found = small_models.forward(model, images)
    assert [x.shape for x in found] == [(2, 10, 11, 8), (2, 5, 6, 16)]
    for i, (x, expected) in enumerate(zip(found, maps, strict=True)):
        assert helpers.relative_error(x, published_nat.layer_norm(expected, norms, f"norm{i}")) < 1e-5


def test_half_precision(rng):
    model = small_models.random(nat.NAT, TINY, rng)
    images = small_models.images(rng, (24, 24))
    half = small_models.abstract(nat.NAT, TINY, dtype=jnp.bfloat16)
    nnx.update(half, nnx.state(model))
    out = small_models.forward(half, images)
    assert out.dtype == jnp.bfloat16
    assert helpers.relative_error(out, small_models.forward(model, images)) < 5e-2


def test_half_parameters():
    """All but the positional biases, which are float32 at least."""
    model = small_models.abstract(nat.NAT, SCALED, param_dtype=jnp.bfloat16)
    dtypes = {path[-1]: x.dtype for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert dtypes.pop("rpb") == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}


def test_implementation_of_attention():
    model = small_models.abstract(nat.NAT, TINY, implementation="gemm")
    assert [block.attn.implementation for block in model.levels[0].blocks] == ["gemm"]


KEPT = jax.checkpoint_policies.save_only_these_names("jax_na_out", "jax_na_lse")


def gradients(model, images):
    def loss(model):
        return jnp.sum(jnp.sin(model(images)))

    return nnx.grad(loss)(model)


@pytest.mark.some(1)
@pytest.mark.parametrize("policy", [True, KEPT], ids=["all", "but attention"])
def test_remat(policy, rng):
    """The same gradients; what is not kept is computed a second time."""
    images = small_models.images(rng, (16, 16))
    model = small_models.random(nat.NAT, TINY, rng)
    again = small_models.abstract(nat.NAT, TINY, remat=policy)
    nnx.update(again, nnx.state(model))
    expected, found = (nnx.to_pure_dict(nnx.jit(gradients)(m, images)) for m in (model, again))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert helpers.relative_error(x, y) < 1e-5 or np.abs(y).max() < 1e-5  # of key's bias it is zero
    gelus = [str(jax.make_jaxpr(gradients)(m, images)).count("erf") for m in (model, again)]
    assert gelus[1] > gelus[0]


def test_drop_path_leaves_out_samples():
    path = blocks.DropPath(0.25, nnx.Rngs(0))
    x = jnp.ones((400, 2, 3, 4))
    out = np.asarray(path(x))
    kept = out[:, 0, 0, 0] != 0
    assert 0.6 < kept.mean() < 0.9
    np.testing.assert_allclose(out, np.broadcast_to(kept[:, None, None, None] / 0.75, out.shape), rtol=1e-6)
    path.eval()
    helpers.assert_identical(path(x), x)


def test_drop_path_grows_over_all_blocks():
    config = dataclasses.replace(SCALED, drop_path=0.3)
    model = small_models.abstract(nat.NAT, config)
    rates = [block.drop_path.dropout.rate for level in model.levels for block in level.blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


def test_what_is_dropped_in_training(rng):
    """Another result at every call until `eval()`, which gives that of the model without dropout."""
    config = dataclasses.replace(TINY, dropout=0.25)
    model = small_models.random(nat.NAT, config, rng)
    plain = small_models.abstract(nat.NAT, TINY)
    nnx.update(plain, nnx.state(model, nnx.Param))
    images = small_models.images(rng, (12, 12), batch=4)
    first, second = small_models.forward(model, images), small_models.forward(model, images)
    assert helpers.relative_error(first, second) > 1e-3
    model.eval()
    expected = small_models.forward(plain, images)
    assert helpers.relative_error(small_models.forward(model, images), expected) < 1e-5


def test_without_rates_there_is_no_random_state():
    model = nnx.eval_shape(lambda: nat.NAT(TINY, rngs=nnx.Rngs(0)))
    assert not jax.tree.leaves(nnx.state(model, nnx.RngState))


def test_in_linen(rng):
    """Through Flax's bridge."""
    layer = nnx.bridge.to_linen(nat.NAT, TINY)
    images = small_models.images(rng, (8, 8))
    model = small_models.random(nat.NAT, TINY, rng)
    variables = {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}
    shapes = jax.eval_shape(layer.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables["params"])
    out = jax.jit(layer.apply)(variables, images)
    assert helpers.relative_error(out, small_models.forward(model, images)) < 1e-6


def test_export_with_a_symbolic_batch(rng):
    model = small_models.random(nat.NAT, TINY, rng)
    graph, state = nnx.split(model)
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 12, 12, 3), np.float32)
    values, tree = jax.tree.flatten(state)  # exported programs know nothing of Flax's types

    def call(values, images):
        return nnx.merge(graph, jax.tree.unflatten(tree, values))(images)

    checks = jax_na.export_safety_checks()
    program = export.export(jax.jit(call), disabled_checks=checks)(values, shape)
    images = small_models.images(rng, (12, 12), batch=3)
    found = export.deserialize(program.serialize()).call(values, images)
    assert helpers.relative_error(found, small_models.forward(model, images)) < 1e-6


ERRORS = {
    "levels": (
        lambda: nat.NATConfig(8, (1, 1), (1,)),
        "num_heads (1,) must have one value for each of the 2 levels of depths (1, 1)",
    ),
    "dilations": (
        lambda: nat.NATConfig(8, (1, 2), (1, 2), dilations=((1,), (1,))),
        "dilations ((1,), (1,)) must have one value for each block of depths (1, 2); alternating((1, 2), ",
    ),
    "heads": (
        lambda: small_models.abstract(nat.NAT, nat.NATConfig(8, (1,), (3,))),
        "qkv_features 8 do not split into 3 heads; the nearest is 9",
    ),
    "channels": (
        lambda: small_models.abstract(nat.NAT, TINY)(jnp.zeros((2, 3, 8, 8))),
        "images (2, 3, 8, 8) must be [batch..., X, Y, 3]: channels last, 3 of them",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()

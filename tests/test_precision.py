# SPDX-License-Identifier: Apache-2.0
"""The option `precision`: what is legal, and where it goes."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.lax import DotAlgorithmPreset, Precision

import jax_na
from flax_layers import NeighborhoodAttention
from flax_layers.nnx import NeighborhoodAttention as NnxNeighborhoodAttention
from jax_na.kernels import precision

from . import helpers
from .cases import NAMED

CASE = NAMED["tokens-2d"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("highest", Precision.HIGHEST),
        ("float32", Precision.HIGHEST),
        ("tensorfloat32", Precision.HIGH),
        ("default", Precision.DEFAULT),
        (Precision.HIGH, Precision.HIGH),
        (["high", Precision.DEFAULT], (Precision.HIGH, Precision.DEFAULT)),
        ("TF32_TF32_F32_X3", DotAlgorithmPreset.TF32_TF32_F32_X3),
        (DotAlgorithmPreset.F32_F32_F32, DotAlgorithmPreset.F32_F32_F32),
    ],
    ids=str,
)
def test_legal_values(given, expected):
    found = precision.resolve(given)
    assert found == expected
    hash(found)


def test_none_is_what_jax_is_configured_for():
    for configured, expected in ((None, None), ("highest", Precision.HIGHEST), ("high", Precision.HIGH)):
        with jax.default_matmul_precision(configured):
            assert precision.resolve(None) == expected


@pytest.mark.parametrize("name", precision.NAMES)
def test_names_are_those_of_jax(name):
    assert Precision(name) is precision.resolve(name)


def test_presets_exist():
    assert set(precision.EXACT_PRESETS) <= set(DotAlgorithmPreset.__members__)


def test_algorithms():
    """A DotAlgorithm, spelled out, means what its preset means."""
    algorithm = jax.lax.DotAlgorithm(
        lhs_precision_type=np.float32,
        rhs_precision_type=np.float32,
        accumulation_type=np.float32,
        lhs_component_count=1,
        rhs_component_count=1,
        num_primitive_operations=1,
        allow_imprecise_accumulation=False,
    )
    assert precision.is_exact(precision.resolve(algorithm))
    half = algorithm._replace(lhs_precision_type=np.float16, rhs_precision_type=np.float16)
    assert not precision.is_exact(half)
    assert precision.is_exact(half._replace(num_primitive_operations=3))


ERRORS = {
    "unknown name": ("hihgest", ValueError, "there is no precision 'hihgest'; legal are 'default', "),
    "its hint": ("hihgest", ValueError, "did you mean 'highest'?"),
    "a number": (2, TypeError, "precision must be None, a name or a value of jax.lax.Precision, got 2"),
    "three": (
        ("high",) * 3,
        ValueError,
        "precision has 3 values, ('high', 'high', 'high'); legal are 1 or 2",
    ),
    "a pair with nothing": (("high", None), TypeError, "precision must be None, a name or a value"),
    "a dtype": (np.float32, TypeError, "precision must be None, a name or a value"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, rng):
    given, error, message = ERRORS[name]
    q, k, v = rng.standard_normal((3, 5, 2, 4)).astype(np.float32)
    weights = rng.standard_normal((5, 2, 3)).astype(np.float32)
    functions = (
        lambda: jax_na.na1d(q, k, v, 3, precision=given),
        lambda: jax_na.neighborhood_qk(q, k, (3,), precision=given),
        lambda: jax_na.neighborhood_av(weights, v, (3,), precision=given),
    )
    for function in functions:
        with pytest.raises(error, match=re.escape(message)):
            function()


def products(text):
    """The precisions of all matrix products of a program."""
    return set(re.findall(r"precision = (\[\w+, \w+\]|\w+)", text)), text.count("stablehlo.dot_general")


def test_xla_passes_it_on(rng):
    """To every product, forward and backward, additional tokens included."""
    inputs = CASE.inputs(rng)

    def program(given):
        def total(inputs):
            out, lse = jax_na.neighborhood_attention(
                **inputs, **CASE.spec, return_lse=True, implementation="xla", precision=given
            )
            return (out**2).sum() + (lse**2).sum()

        return jax.jit(jax.grad(total)).lower(inputs).as_text()

    found, number = products(program("highest"))
    assert found == {"[HIGHEST, HIGHEST]"}
    assert number > 5
    with jax.default_matmul_precision("high"):
        assert products(program(None))[0] == {"[HIGH, HIGH]"}
        assert products(program("default"))[0] == {"[DEFAULT, DEFAULT]"}


@pytest.mark.some(2)
@pytest.mark.skipif(helpers.ON_GPU, reason="a GPU is less exact by default")
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
def test_cpu_is_exact_whatever_it_is(implementation, rng):
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)

    def attend(given):
        return lambda **inputs: jax_na.neighborhood_attention(
            **inputs, **CASE.spec, return_lse=True, implementation=implementation, precision=given
        )

    expected = helpers.evaluate(attend(None), inputs, cotangents)
    helpers.assert_identical(helpers.evaluate(attend("highest"), inputs, cotangents), expected)


def test_layers_pass_it_on(rng, monkeypatch):
    """To the projections and to the attention."""
    given = []

    def attention(query, *_, precision, **options):
        given.append(precision)
        return query

    monkeypatch.setattr(jax_na, "neighborhood_attention", attention)
    x = rng.standard_normal((1, 6, 8)).astype(np.float32)
    linen = NeighborhoodAttention(num_heads=2, kernel_size=(3,), precision="highest")
    variables = linen.init(jax.random.key(0), x)
    text = jax.jit(linen.apply).lower(variables, x).as_text()
    assert products(text)[0] == {"[HIGHEST, HIGHEST]"}
    NnxNeighborhoodAttention(2, 8, (3,), precision="high", rngs=nnx.Rngs(0))(x)
    assert set(given) == {"highest", "high"}

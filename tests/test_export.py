# SPDX-License-Identifier: Apache-2.0
"""Programs that are made at one time or place and run at another: jax.export, ahead of time, from a cache."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import jax_na
from jax_na import _cpu

from . import helpers
from .cases import Case

pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
CASE = Case("2d", (3, 5), (2, 3), stride=(1, 2), is_causal=(True, False), heads=2, head_dim=3, rpb=True)
TOKENS = Case("tokens", (5,), 3, batch=(2,), heads=2, head_dim=3, rpb=True, additional=2)


def attend(case, implementation):
    function = helpers.attend(case, implementation)
    return lambda inputs: function(**inputs)


def abstract(inputs):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)


def symbolic(case):
    """Abstract inputs with a batch, and a number of tokens, of unknown size."""
    batch, tokens = export.symbolic_shape("batch, tokens")
    shapes = {name: shape if name == "rpb" else (batch, *shape[1:]) for name, shape in case.shapes().items()}
    shapes |= {name: (batch, tokens, *s[2:]) for name, s in shapes.items() if name.startswith("additional")}
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def exported(function, arguments, **options):
    checks = jax_na.export_safety_checks()
    return export.export(jax.jit(function), disabled_checks=checks, **options)(arguments)


@pytest.mark.some(1)
@every_implementation
def test_round_trip_with_a_symbolic_batch(implementation, rng):
    """One program, written and read again, for every batch size and number of tokens; and its gradient."""
    program = exported(attend(TOKENS, implementation), symbolic(TOKENS))
    loaded = export.deserialize(program.serialize(vjp_order=1))
    case = dataclasses.replace(TOKENS, batch=(3,), additional=1)
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    found = helpers.evaluate(lambda **inputs: loaded.call(inputs), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)
    one = {name: x if name == "rpb" else x[:1] for name, x in inputs.items()}
    for x, y in zip(loaded.call(one), found[0], strict=True):
        assert helpers.relative_error(x, y[:1]) <= 1e-6


@every_implementation
def test_vmap_over_a_symbolic_size(implementation, rng):
    """A gradient for every example of a batch of unknown size, a bias for each among the inputs."""
    cotangents = CASE.cotangents(rng)

    def gradient(inputs):
        return jax.vjp(attend(CASE, implementation), inputs)[1](cotangents)[0]

    (examples,) = export.symbolic_shape("examples")
    types = {name: jax.ShapeDtypeStruct((examples, *s), np.float32) for name, s in CASE.shapes().items()}
    inputs = [CASE.inputs(rng) for _ in range(2)]
    stacked = {name: np.stack([x[name] for x in inputs]) for name in types}
    found = exported(jax.vmap(gradient), types).call(stacked)
    for i, example in enumerate(inputs):
        expected = helpers.expected(CASE, example, cotangents)[1]
        helpers.assert_close({name: x[i] for name, x in found.items()}, expected, 6e-5)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_symbolic_sizes_that_cannot_be(place):
    """Of an axis, of heads, of features: said before anything is compared."""
    shape = ["2", "9", "2", "4"]
    shape[place] = "n"
    x = jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(shape)), np.float32)
    message = (
        r"query has shape .*n.*; the batch axes of \[batch..., X, heads, features\] can have symbolic sizes"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: jax_na.na1d(x, x, x, 3), x)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_several_platforms(implementation, rng):
    """One program for all of them, made without any GPU or TPU; each has what runs there."""
    program = exported(attend(TOKENS, implementation), symbolic(TOKENS), platforms=("cpu", "cuda", "tpu"))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert ("na_fused_forward" in program.mlir_module()) == (implementation is None)
    inputs = TOKENS.inputs(rng)
    values, _ = helpers.expected(TOKENS, inputs, TOKENS.cotangents(rng))
    helpers.assert_close(helpers.named(program.call(inputs)), values, 2e-5)


@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
def test_platforms_without_kernels(implementation):
    """Asked for by name, an implementation that lacks one of the platforms is an error."""
    message = f"implementation {implementation!r} cannot run here: it has no kernels for this platform"
    with pytest.raises(ValueError, match=message):
        exported(attend(CASE, implementation), symbolic(CASE), platforms=("cpu", "tpu"))


def test_safety_checks():
    """Every kernel is consented to, and without that JAX says what is missing."""
    names = {str(check) for check in jax_na.export_safety_checks()}
    assert all(any(kernel in name for name in names) for kernel in _cpu.handlers())
    with pytest.raises(ValueError, match="na_softmax"):
        export.export(jax.jit(attend(CASE, "naive")))(abstract(CASE.inputs(np.random.default_rng(0))))


@every_implementation
def test_ahead_of_time(implementation, rng):
    """Compiled from types alone, written as an executable and loaded again."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    run = helpers.compiled(helpers.attend(CASE, implementation))
    program = run.lower(abstract(inputs), abstract(cotangents)).compile()
    helpers.assert_correct(CASE, program(inputs, cotangents), inputs, cotangents)
    loaded = serialize_executable.deserialize_and_load(
        *serialize_executable.serialize(program), execution_devices=jax.devices()[:1]
    )
    helpers.assert_identical(loaded(inputs, cotangents), program(inputs, cotangents))


@pytest.fixture
def cache(tmp_path):
    """JAX's persistent cache in an empty folder, for everything that is compiled."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.some(1)
@every_implementation
def test_persistent_cache(implementation, cache, rng):
    """What was compiled once is found again; another window or scale is another program."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)

    def evaluate(case):
        hits = []
        jax.monitoring.register_event_listener(listener := lambda name, **_: hits.append(name))
        try:
            found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
        finally:
            jax.monitoring.unregister_event_listener(listener)
        helpers.assert_correct(case, found, inputs, cotangents)
        return hits.count("/jax/compilation_cache/cache_hits")

    assert [evaluate(CASE), evaluate(CASE)] == [0, 1]
    assert any(cache.iterdir())
    assert evaluate(dataclasses.replace(CASE, stride=(2, 1))) == 0
    assert evaluate(dataclasses.replace(CASE, scale=0.3)) == 0


OTHER_PROCESS = """
import sys, numpy, jax
from jax_na import _cpu
print(_cpu.isa())
with open(sys.argv[1] + "/program", "rb") as file:
    program = jax.export.deserialize(file.read())
with numpy.load(sys.argv[1] + "/inputs.npz") as inputs:
    out, lse = program.call(dict(inputs))
numpy.savez(sys.argv[1] + "/results.npz", out=out, lse=lse)
"""


@pytest.mark.skipif(helpers.ON_GPU, reason="of the CPU kernels")
def test_another_process_with_the_narrowest_instruction_set(tmp_path, rng):
    """The tiles chosen here run there; it imports the library and calls nothing of it."""
    case = dataclasses.replace(CASE, grid=(9, 20), kernel_size=(3, 5))
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    (tmp_path / "program").write_bytes(exported(attend(case, "fused"), symbolic(case)).serialize())
    np.savez(tmp_path / "inputs.npz", **inputs)
    arguments = [sys.executable, "-P", "-c", OTHER_PROCESS, str(tmp_path)]
    environment = {**os.environ, "JAX_NA_ISA": _cpu.isa_levels()[0]}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [_cpu.isa_levels()[0]]
    with np.load(tmp_path / "results.npz") as results:
        helpers.assert_close(dict(results), helpers.expected(case, inputs, cotangents)[0], 2e-5)


def test_eval_shape_computes_nothing():
    """Types of results, of a problem too large for any machine."""
    x = jax.ShapeDtypeStruct((1, 2**15, 2**15, 64, 128), jnp.bfloat16)
    out, lse = jax.eval_shape(lambda x: jax_na.na2d(x, x, x, 13, return_lse=True), x)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert (lse.shape, lse.dtype) == (x.shape[:-1], jnp.float32)

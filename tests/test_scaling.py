# SPDX-License-Identifier: Apache-2.0
"""Communication on paper and in compiled programs, and the example that trains on a mesh."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import pytest

import jax_na
from jax_na.mesh import communication, traffic

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling():
    """docs/scaling.py"""
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "docs" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize(
    ("grid", "kernel_size", "cut"),
    [
        ((24, 16), (7, 5), (8, 1)),  # windows reach over two blocks
        ((24, 16), (8, 5), (4, 2)),  # windows reach further to one side
        ((6, 8, 12), (3, 3, 5), (1, 2, 4)),
    ],
)
def test_compiled_bytes_are_those_of_the_formula(scaling, grid, kernel_size, cut):
    layer = scaling.Layer(grid, kernel_size, (cut,))
    token = scaling.HEADS * 2 * scaling.HEAD_DIM * 4
    for backward, keys in enumerate(scaling.halo_keys(jax_na.Neighborhood(kernel_size), grid, cut)):
        assert scaling.compiled_bytes(layer, cut, "float32", bool(backward)) == keys * token


def test_halo_of_a_block_in_the_middle(scaling):
    """The closed form of docs/scaling.md."""
    keys = (16 + 6) * (24 + 8) - 16 * 24
    found = scaling.halo_keys(jax_na.Neighborhood((7, 5), dilation=(1, 2)), (64, 96), (4, 4))
    assert found == (keys, 3 * keys)


@pytest.mark.parametrize(
    ("neighborhood", "cut", "message"),
    [
        (jax_na.Neighborhood((7, 5), is_periodic=(True, False)), (4, 1), "axes with borders"),
        (jax_na.Neighborhood((7, 5)), (5, 1), r"axis 0 of 64 does not divide over 5 .*4, 8"),
    ],
)
def test_halos_that_have_no_formula(neighborhood, cut, message):
    with pytest.raises(ValueError, match=message):
        traffic.halo_keys(neighborhood, (64, 96), cut)


def test_collectives_are_read_from_the_text():
    """As compilers for CPUs and GPUs write them."""

    class Compiled:
        def as_text(self):
            return """
  %a = f32[2,3]{1,0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{2,0}}, metadata={}
  %b = (bf16[4]{0}, bf16[4]{0}) collective-permute-start(%x), source_target_pairs={{1,0}}
  %c = bf16[4]{0} collective-permute-done(%b)
  %d = ((f32[2]{0}, f32[3]{0}), (f32[4]{0}, f32[6]{0})) all-gather-start(%x, %y), dimensions={0}
  %f = ((bf16[4]{0}), bf16[16]{0:S(1)}) all-gather-start(%x), dimensions={0}
  %g = ((bf16[4,2]{1,0}, bf16[6]{0}), (bf16[4,2]{1,0}, bf16[6]{0}), u32[], u32[]) collective-permute-start(%x)
  %h = ((f32[20]{0}), f32[10]{0}) reduce-scatter-start(%x), dimensions={0}
  %i = ((f32[8]{0}), f32[8]{0}) all-to-all-start(%x), dimensions={0}
  %e = (f32[], f32[8]{0}) all-reduce(%x, %y), to_apply=%sum
"""

    found = communication.collectives(Compiled())
    permute = "collective-permute"
    assert found[:2] == [(permute, 24, ((0, 1), (2, 0))), (permute, 8, ((1, 0),))]
    assert found[2:4] == [("all-gather", 40, ()), ("all-gather", 32, ())]
    assert found[4:6] == [(permute, 28, ()), ("reduce-scatter", 40, ())]
    assert found[6:] == [("all-to-all", 32, ()), ("all-reduce", 36, ())]
    assert communication.received(found) == {1: 24, 0: 32}


@pytest.mark.some(0)  # half a minute; .ci/run runs the example too
def test_sharded_training():
    """The example; it checks its losses and its communication itself."""
    pytest.importorskip("skimage")
    command = [sys.executable, "-P", str(ROOT / "examples" / "sharded_training.py"), "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'data': 2, 'space': 4" in done.stdout
    assert "nothing is gathered" in done.stdout

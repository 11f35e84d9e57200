# SPDX-License-Identifier: Apache-2.0
"""Which implementations run on a GPU, and the reasons why others do not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na.kernels import contract, devices, register, tuning
from jax_na.kernels.installation import NOT_BUILT
from jax_na.kernels.platforms import PLATFORMS
from jax_na.kernels.table import ROWS
from jax_na.op import Op

from .cuda_programs import CASE, attend, calls, lowered

pytestmark = pytest.mark.usefixtures("cuda_kernels")


def reasons(**arguments):
    return {row.name: row.reason for row in jax_na.implementations(platform="cuda", **arguments)}


class Gpu:
    device_kind = "NVIDIA Test"

    def __init__(self, capability):
        self.compute_capability = capability


@pytest.fixture
def gpu(monkeypatch):
    """JAX seems to have a GPU of this compute capability."""

    def pretend(*capabilities):
        monkeypatch.setattr(devices, "cuda_devices", lambda: [Gpu(c) for c in capabilities])

    return pretend


def test_no_gpu(gpu):
    gpu()
    found = reasons()
    assert found["xla"] is None
    assert found["fused"] == found["gemm"] == found["naive"]
    assert found["fused"].startswith(
        "JAX has no CUDA device here: that needs a GPU, its driver, and jax[cuda13]"
    )


def test_a_gpu(gpu):
    gpu("9.0")
    assert [name for name, reason in reasons().items() if reason is None] == ["fused", "gemm", "naive", "xla"]
    wide = jax.ShapeDtypeStruct((1, 9, 8, 4, 320), np.float32)
    assert reasons(query=wide)["fused"] == "it takes up to 256 features per head of query and key, not 320"
    assert reasons(query=wide)["gemm"] is None
    op = Op(jax_na.Neighborhood((3,)), (9,))
    key = tuning.key(op, contract.Problem(op.axes, "bfloat16", 64), "cuda")
    assert key.startswith("cuda NVIDIA Test | bfloat16 64 | 9 | kernel 3 ")


def test_an_old_gpu(gpu, monkeypatch, rng):
    """Its programs are pure JAX, unless a kernel is asked for by name."""
    gpu("7.0")
    monkeypatch.setattr(register, "architectures", lambda: ["80", "90a", "80-virtual"])
    why = "it was compiled for 80, 90a, 80-virtual, this GPU has compute capability 7.0"
    assert reasons()["fused"] == reasons()["gemm"] == reasons()["naive"] == why
    assert not calls(lowered(attend(CASE), CASE.inputs(rng)))
    with pytest.raises(ValueError, match=re.escape(f"implementation 'fused' cannot run here: {why}")):
        lowered(attend(CASE, "fused"), CASE.inputs(rng))


def test_not_built(gpu, monkeypatch, rng):
    gpu("9.0")
    monkeypatch.delitem(register.TARGETS, "cuda")
    monkeypatch.setitem(register.REFUSED, "cuda", NOT_BUILT["cuda"])
    assert reasons()["fused"] == reasons()["gemm"] == reasons()["naive"] == NOT_BUILT["cuda"]
    assert "JAX_NA_CUDA_TOOLKIT=pypi" in NOT_BUILT["cuda"]
    assert not calls(lowered(attend(CASE), CASE.inputs(rng)))
    with pytest.raises(ValueError, match="this installation has no CUDA kernels"):
        lowered(attend(CASE, "fused"), CASE.inputs(rng))


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("9.0", ["90a"], True),
        ("8.0", ["90a"], False),
        ("10.0", ["90a"], False),
        ("8.9", ["80"], True),
        ("8.0", ["86", "89"], False),
        ("9.0", ["80"], False),
        ("12.1", ["80-virtual"], True),
        ("7.5", ["80-virtual", "80"], False),
        ("10.3", ["100"], True),
        ("10.3", ["100a"], False),
        ("10.3", ["100f"], True),
        ("12.0", ["100", "120"], True),
        ("12.0", ["native"], True),
    ],
)
def test_what_runs_on_what(capability, architectures, runs):
    assert devices.runs_on(capability, architectures) is runs


def test_table_names_registered_kernels():
    """Those that the module has, if it is built."""
    for row in ROWS:
        for platform in PLATFORMS:
            assert set(row.targets) <= register.TARGETS[platform]


def forward_kernels(query, **arguments):
    fused = jax_na.implementations(query, (7, 7), platform="cuda", **arguments)[0]
    return {row.name: row.reason for row in fused.variants if row.pass_name == "forward"}


def test_why_a_kernel_is_not_taken(gpu):
    """Of the forward pass on a Hopper GPU."""
    gpu("9.0")
    half = jax.ShapeDtypeStruct((1, 32, 32, 4, 64), jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((1, 3, 4, 64), jnp.bfloat16)
    odd = jax.ShapeDtypeStruct((1, 32, 32, 4, 20), jnp.float16)
    table = np.zeros((4, 13, 13), np.float32)
    beside = forward_kernels(half, additional_keys=tokens)
    assert forward_kernels(half) == dict.fromkeys(("sm90", "halo", "halo_sm90", "portable"))
    biased = forward_kernels(half, rpb=table)
    reason = "it takes no relative positional bias (rpb)"
    assert biased == {"sm90": reason, "halo": None, "halo_sm90": None, "portable": None}
    why = {
        "it takes no additional tokens (token_key, token_value)": beside,
        "it takes a multiple of 8 features per head, not 20": forward_kernels(odd),
    }
    for reason, found in why.items():
        assert found == {"sm90": reason, "halo": reason, "halo_sm90": reason, "portable": None}
    single = forward_kernels(jax.ShapeDtypeStruct(half.shape, np.float32))
    for name in ("sm90", "halo", "halo_sm90"):
        assert single[name].startswith("it takes ")
        assert single[name].endswith(", not float32")


def test_kernels_for_another_gpu(gpu):
    gpu("8.0")
    half = jax.ShapeDtypeStruct((1, 32, 32, 4, 64), jnp.bfloat16)
    reason = "it takes a GPU of compute capability 9.0"
    assert forward_kernels(half) == {"sm90": reason, "halo": None, "halo_sm90": reason, "portable": None}

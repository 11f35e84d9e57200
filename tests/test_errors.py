# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments: messages with the numbers given and the nearest legal ones, nothing computed before."""

import re

import jax
import numpy as np
import pytest
from jax.extend.core import Primitive

from . import messages, region_messages
from .messages import F64, Q, attend, av, qk

VALUE_ERRORS = messages.VALUE_ERRORS | region_messages.VALUE_ERRORS
TYPE_ERRORS = messages.TYPE_ERRORS | region_messages.TYPE_ERRORS


@pytest.fixture
def nothing_computed(monkeypatch):
    """Neither traces nor compiles anything of ours: our primitives may not be bound."""
    bind = Primitive.bind

    def guarded(self, *operands, **parameters):
        assert not self.name.startswith("na_")
        return bind(self, *operands, **parameters)

    monkeypatch.setattr(Primitive, "bind", guarded)


@pytest.mark.parametrize("name", VALUE_ERRORS)
def test_value_error(name, nothing_computed):
    call, message = VALUE_ERRORS[name]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert caught.type is ValueError


@pytest.mark.parametrize("name", TYPE_ERRORS)
def test_type_error(name, nothing_computed):
    call, message = TYPE_ERRORS[name]
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("call", [attend, qk, av, region_messages.attend])
def test_guard_of_legal_calls(call, nothing_computed):
    """The guard above does stop a call without an error."""
    with pytest.raises(AssertionError, match="na_"):
        call()


def test_kernels_for_float64(x64):
    message = (
        "implementation 'fused' cannot run: it takes float32, bfloat16, float16, not float64; "
        "'naive', 'xla' can"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        attend(F64, F64, F64, implementation="fused")


def test_default_for_float64_is_not_an_error(x64):
    assert attend(F64, F64, F64).dtype == np.float64
    assert qk(F64, F64).dtype == np.float64


def test_errors_are_raised_while_tracing():
    """Under jit the error comes out of the trace, as it is."""
    with pytest.raises(ValueError, match="exceeds length 5"):
        jax.jit(lambda q: attend(q, q, q, kernel_size=(6, 6)))(Q)
    with pytest.raises(ValueError, match="exceeds length 5"):
        jax.eval_shape(lambda q: attend(q, q, q, kernel_size=(6, 6)), jax.ShapeDtypeStruct(Q.shape, Q.dtype))

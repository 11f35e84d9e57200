# SPDX-License-Identifier: Apache-2.0
"""Programs for a GPU, compiled without one, and the custom calls in them."""

import dataclasses
import re

import jax
import jax.numpy as jnp

import jax_na

from .cases import Case

CASE = Case("2d", (9, 8), (4, 3), (2, 1), (2, 1), (True, False), heads=4, kv_heads=2, head_dim=16, rpb=True)
UNFUSED = {f"na_{name}_{part}" for name in ("gemm", "naive") for part in ("qk", "av", "inverse")}
KERNELS = {"na_fused_forward", "na_fused_backward"} | UNFUSED
INTEGERS = re.compile(r"(\w+) = (?:dense|array)<(?:i64: )?(.*?)>")


def lowered(function, *arguments):
    """The program for a GPU."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@dataclasses.dataclass
class Call:
    name: str
    attributes: dict
    operands: list
    results: list


def calls(text):
    """The custom calls to kernels of this library, in the order of the program."""
    found = []
    pattern = r"stablehlo\.custom_call @(na_\w+)\(.*?backend_config = \{(.*?)\}.*? : \((.*?)\) -> (.*)"
    for name, config, operands, results in re.findall(pattern, text):
        attributes = {
            key: [int(x) for x in re.findall(r"-?\d+", dense)] for key, dense in INTEGERS.findall(config)
        }
        for key, value in re.findall(r"(\w+) = (-?[\d.e+-]+) : [if]\d+", config):
            attributes[key] = float(value)
        attributes.update(re.findall(r'(\w+) = "(.*?)"', config))
        found.append(Call(name, attributes, *(re.findall(r"tensor<(\S+?)>", x) for x in (operands, results))))
    assert len(found) == text.count("custom_call @na_")
    return found


def attend(case, implementation=None, **options):
    def function(inputs):
        return jax_na.neighborhood_attention(
            **inputs, **case.spec, return_lse=True, implementation=implementation, **options
        )

    return function


def gradient(case, implementation=None, **options):
    """Of all inputs, with cotangents that depend on the results."""

    def value(inputs):
        out, lse = attend(case, implementation, **options)(inputs)
        return jnp.sum(out.astype(jnp.float32) ** 2) + jnp.sum(lse**2)

    return jax.grad(value)


def expanded(attributes):
    """A splat like dense<1> : tensor<2xi64> has one number for all."""
    return {
        name: value * 2 if isinstance(value, list) and len(value) == 1 else value
        for name, value in attributes.items()
    }

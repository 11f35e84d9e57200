# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the library run, and show what comes out."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import jax_na

MODULES = [name for _, name, _ in pkgutil.walk_packages(jax_na.__path__, "jax_na.") if "._c" not in name]
NAMES = {"jax": jax, "jnp": jnp, "jax_na": jax_na}
EXAMPLES = [
    example
    for name in MODULES
    for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    if example.examples
]


def test_there_are_examples():
    documented = {example.name.split(".")[-1] for example in EXAMPLES}
    assert documented >= {
        "neighborhood_attention",
        "na1d",
        "na2d",
        "na3d",
        "merge_attentions",
        "Neighborhood",
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example, monkeypatch):
    example.globs.update(NAMES)
    report = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)

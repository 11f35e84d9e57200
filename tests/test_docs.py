# SPDX-License-Identifier: Apache-2.0
"""The examples of the documentation run: pages, the README, and the docstrings of both packages."""

import doctest
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_layers
import jax_na

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = [pathlib.Path(package.__file__).parent for package in (jax_na, flax_layers)]
RUNS = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = (
    "README.md",
    *(f"docs/{f.name}" for f in sorted((ROOT / "docs").glob("*.md")) if RUNS.search(f.read_text())),
)
MODULES = [
    ".".join(file.relative_to(package.parent).with_suffix("").parts)
    for package in PACKAGES
    for file in sorted(package.rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("page", PAGES)
def test_pages(page, tmp_path, monkeypatch):
    """All Python of a page, from top to bottom; the assertions in it hold."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in RUNS.findall((ROOT / page).read_text()):
        exec(compile(block, page, "exec"), scope)


@pytest.fixture
def names():
    """What examples of docstrings take for granted."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 14, 14, 2, 8))
    out, lse = jax_na.na2d(q, k, v, 3, return_lse=True)
    return {
        **{"jax": jax, "jnp": jnp, "np": np, "jax_na": jax_na},
        "Neighborhood": jax_na.Neighborhood,
        **{"q": q, "k": k, "v": v, "x": q, "f": lambda x: jax_na.na2d(x, x, x, 3)},
        **{"out_a": out, "out_b": out, "lse_a": lse, "lse_b": lse},
    }


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, names):
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names)
    tests = [test for test in tests if test.examples]
    assert tests
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_everything_is_found():
    """Pages that lose their examples, or packages that move, are not passed over."""
    assert len(MODULES) >= 8
    assert len(PAGES) >= 12
    assert {name.partition(".")[0] for name in MODULES} == {"jax_na", "flax_layers"}

# SPDX-License-Identifier: Apache-2.0
"""The script that compares this library with saved tensors of NATTEN; here they are this library's own."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

import jax_na

FILE = pathlib.Path(__file__).parent.parent / "examples" / "compare_natten.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("compare_natten", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def saved(rng):
    """What docs/natten.md saves, with everything that is optional."""
    q, k, v, d_out = (rng.standard_normal((2, 9, 11, 3, 8)).astype(np.float32) for _ in range(4))
    rpb = rng.standard_normal((3, 5, 9)).astype(np.float32)
    options = {"kernel_size": (3, 5), "stride": (1, 2), "dilation": 2, "is_causal": (True, False)}

    def attend(*tokens, rpb):
        window = jax_na.Neighborhood(**options)
        return jax_na.neighborhood_attention(
            *tokens, window, rpb=rpb, scale=0.3, return_lse=True, implementation="xla", precision="highest"
        )

    out, pull, lse = jax.vjp(lambda q, k, v, rpb: attend(q, k, v, rpb=rpb), q, k, v, rpb, has_aux=True)
    gradients = dict(zip(("d_query", "d_key", "d_value", "d_rpb"), pull(d_out), strict=True))
    inputs = {"query": q, "key": k, "value": v, "rpb": rpb, "d_out": d_out, "scale": 0.3}
    return {n: np.asarray(x) for n, x in {**inputs, **options, "out": out, "lse": lse, **gradients}.items()}


@pytest.mark.parametrize("heads_first", [False, True])
def test_results_that_agree(script, saved, heads_first, tmp_path, monkeypatch, capsys):
    if heads_first:
        saved = {name: np.moveaxis(x, -2, 1) if x.ndim == 5 else x for name, x in saved.items()}
        saved["lse"] = np.moveaxis(saved["lse"], -1, 1)
    np.savez(tmp_path / "saved.npz", **saved)
    arguments = ["compare_natten.py", str(tmp_path / "saved.npz"), *["--heads-first"] * heads_first]
    monkeypatch.setattr("sys.argv", arguments)
    assert script.main() == 0
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in ("out", "lse", "d_query", "d_key", "d_value", "d_rpb"))
    assert printed.endswith("the results agree\n")


def test_results_that_differ(script, saved, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "saved.npz", **(saved | {"d_key": 1.01 * saved["d_key"]}))
    monkeypatch.setattr("sys.argv", ["compare_natten.py", str(tmp_path / "saved.npz")])
    assert script.main() == 1
    assert "they differ by" in capsys.readouterr().out


def test_heads_in_front(script, saved, tmp_path, monkeypatch, capsys):
    """The most likely mistake is named."""
    moved = {name: np.moveaxis(x, -2, 1) if x.ndim == 5 else x for name, x in saved.items()}
    np.savez(tmp_path / "saved.npz", **moved)
    monkeypatch.setattr("sys.argv", ["compare_natten.py", str(tmp_path / "saved.npz")])
    assert script.main() == 2
    printed = capsys.readouterr().err
    assert "exceeds length" in printed
    assert printed.endswith("if the arrays have the heads before the tokens: --heads-first\n")


def test_a_file_without_results(script, saved, tmp_path):
    np.savez(tmp_path / "saved.npz", query=saved["query"])
    with pytest.raises(ValueError, match="has no kernel_size, key, out, value"):
        script.read(str(tmp_path / "saved.npz"), heads_first=False)

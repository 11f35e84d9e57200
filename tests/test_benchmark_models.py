# SPDX-License-Identifier: Apache-2.0
"""The throughput of models: cases, the paper's figures, tables, and one tiny model measured."""

import json
import pathlib
import sys

import pytest

for package in ("flax", "optax"):
    pytest.importorskip(package, reason="models are trained with the extra train")

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks" / "models"
sys.path.insert(0, str(FOLDER))

import cases  # noqa: E402
import paper  # noqa: E402
import table  # noqa: E402
import throughput  # noqa: E402

CASES = {case.name: case for case in cases.cases()}


def test_cases_are_those_of_the_paper():
    """Every model forward by every implementation, and classifiers trained with the bias and without."""
    assert len(CASES) == len(list(cases.cases()))
    assert CASES["ffhq_256-forward-float32-gemm"].shape == (64, 256, 256, 3)
    assert CASES["ffhq_1024-forward-float32-fused"].shape == (8, 1024, 1024, 3)
    assert CASES["imagenet_256-train-bfloat16-default"].has_bias is None
    for variant in paper.FIGURES:
        assert f"{variant}-forward-float32-naive" in CASES
        if variant.startswith("ffhq"):
            continue
        assert CASES[f"{variant}-train-bfloat16-default"].config.rel_pos_bias
        assert not CASES[f"{variant}-train-bfloat16-default-without-bias"].config.rel_pos_bias


def test_figures_of_the_paper():
    """As printed: NAT-Mini in half and single precision, hours; StyleNAT in single precision alone."""
    mini = paper.FIGURES["nat_mini"]
    assert (mini.half["fused"], mini.single["gemm"], mini.hours["naive"]) == (3742, 2481, 19.4)
    assert paper.FIGURES["ffhq_1024"] == ({}, {"naive": 8.2, "gemm": 8.5, "fused": 11.5}, {})


@pytest.mark.parametrize("file", sorted((FOLDER / "results").glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_are_readable(file):
    """All of them are in the tables."""
    content = json.loads(file.read_text())
    text = table.tables(content)
    assert content["results"]
    assert all(row["variant"] in text for row in content["results"])
    assert {row["name"] for row in content["results"]} <= {*CASES}


def row(name, **measured):
    return {**CASES[name].columns, **measured}


def test_tables():
    facts = {"seconds": 0.064, "memory": 5e8, "trace_s": 1.0, "lower_s": 2.0, "compile_s": 3.0}
    results = [
        row("nat_mini-forward-bfloat16-fused", **facts),
        row("nat_mini-train-bfloat16-default-without-bias", **facts),
        row("nat_mini-train-bfloat16-default", reason="there was no room"),
    ]
    text = table.tables({"results": results})
    assert "2000 (3742)" in text
    assert "10.7" in text  # minutes of an epoch
    assert "3.3" in text  # the paper's
    assert text.endswith("nat_mini-train-bfloat16-default: there was no room")
    assert table.summary(results[0]).startswith("2000 images/s, 0.50 GB")


@pytest.mark.parametrize(
    "name",
    [
        "nat_quick-forward-float32-default",
        "hdit_quick-train-float32-default",
        "stylenat_quick-forward-float32-default",
    ],
)
def test_one_is_measured(name):
    (case,) = (case for case in cases.quick_cases() if case.name == name)
    found = throughput.measure(case, seconds=0.0)
    assert "reason" not in found
    assert min(found["seconds"], found["memory"], found["compile_s"]) > 0


def test_a_wrong_name(capsys):
    assert throughput.main(["--only", "no_such_model"]) == 2
    assert "--list" in capsys.readouterr().err

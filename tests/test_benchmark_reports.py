# SPDX-License-Identifier: Apache-2.0
"""Results of the benchmarks: committed files, summaries, pages, charts."""

import pytest

from jax_na.tools.problems import BY_NAME, FORWARD

from .benchmark_modules import FOLDER

# What benchmark_modules has made importable:
# isort: split
import page
import report
import results

FILES = sorted((FOLDER / "results").glob("*.json"))


# Reports


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_committed_results_are_readable(file):
    document = results.read(file)
    texts = report.whole(document), report.tables(document)
    names = {r["problem"] for r in document["results"]} - {"tiny-16-w3"}
    assert names <= set(BY_NAME)
    assert all(name in text for name in names for text in texts)
    medians = [row["median_s"] for row in results.summary(document["results"])]
    assert len(medians) == len(document["results"])
    assert min(medians) > 0


@pytest.mark.skipif(not FILES, reason="this copy of the sources has no results")
def test_the_page_has_the_committed_results():
    docs = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    text = report.whole(results.read(FOLDER / "results" / "cpu-epyc-2core-float32.json"))
    assert report.replaced(docs, text) == docs


def row(method, seconds, **other):
    key = {"problem": "nat-s1-56", "dtype": "float32", "direction": FORWARD, "threads": 1}
    flops = {"flops": 2e9, "exact": True, "bytes": 1e6, "errors": {}, "note": ""}
    lists = {"seconds": seconds, "calls": [1] * len(seconds), "waited": [0.0] * len(seconds)}
    return {"framework": "jax", "method": method, **key, **lists, **flops, **other}


def test_summary_has_the_ratios():
    rows = [row("fused", [3.0, 1.0, 2.0], waited=[0.5] * 3), row("sgemm", [1.0])]
    fused, _ = results.summary(rows)
    assert (fused["median_s"], fused["low_s"], fused["high_s"]) == (2.0, 1.5, 2.5)
    assert (fused["rate"], fused["of_sgemm"], fused["is_loaded"]) == (1e9, 0.5, True)


def test_samples_are_tidy():
    where = {"machine": {"cpu": "a processor"}, "versions": {"jax": "1"}}
    frame = results.samples({**where, "results": [row("fused", [3.0, 1.0]), row("xla", [2.0])]})
    columns = ("method", "round", "seconds", "machine", "jax")
    assert frame.select(columns).rows() == [
        ("fused", 0, 3.0, "a processor", "1"),
        ("fused", 1, 1.0, "a processor", "1"),
        ("xla", 0, 2.0, "a processor", "1"),
    ]


def test_the_best_of_pure_jax():
    rows = [row("fused", [1.0]), row("jax-blocked", [2.0]), row("xla", [4.0])]
    found = page.Results({"results": rows})
    best = found.get(problem="nat-s1-56", dtype="float32", method=page.BEST_JAX)
    assert (best["form"], page.factor(best, found.of("fused")[0])) == ("jax-blocked", 2.0)
    cells = dict(zip(*page.times(found, "float32", FORWARD), strict=True))
    assert (cells["fused"], cells[page.BEST_JAX]) == ("**1000**", "2000 (jax-blocked)")
    assert cells["torch-flex"] == "-"


def test_extra_memory():
    assert results.extra_bytes({"rise": 5, "results": 3, "temporary": 4}) == 4
    assert results.extra_bytes({"rise": 5, "results": 3}) == 2
    assert results.extra_bytes({}) is None


@pytest.mark.some(0)  # two seconds
@pytest.mark.skipif(not FILES, reason="this copy of the sources has no results")
def test_chart(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = [str(FOLDER / "results" / "cpu-epyc-2core-float32.json")]
    assert report.main([*arguments, "--chart", str(tmp_path / "chart.png")]) == 0
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_modules_stand_on_each_other_without_circles():
    """Top-level imports among the benchmarks."""
    imports = {}
    for file in FOLDER.glob("*.py"):
        words = [line.split() for line in file.read_text().splitlines()]
        found = {w[1] for w in words if len(w) > 1 and w[0] in ("import", "from")}
        imports[file.stem] = {name for name in found if (FOLDER / f"{name}.py").exists()}
    while imports:
        free = {name for name, needed in imports.items() if not needed & set(imports)}
        assert free, f"a circle among {sorted(imports)}"
        imports = {name: needed for name, needed in imports.items() if name not in free}

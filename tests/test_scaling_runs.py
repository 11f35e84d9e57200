# SPDX-License-Identifier: Apache-2.0
"""The benchmark of scaling: runs on eight parts of a CPU, in two processes, and what its comparison finds."""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_na.mesh import halo
from jax_na.mesh.traffic import Link
from jax_na.tools.problems import BOTH, FORWARD, problem

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks" / "models"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks" / "devices"))

# isort: split
import compare
import link
import listing
import processes
import scaling
import tables
from layers import Layer
from measure import Bench, Plan
from splits import WEAK, Case, Split, counts

pytestmark = [
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]
GRID = Layer(problem("grid", "", (1, 16, 8), (2, 4), 5, direction=BOTH))
ALONE, ROWS, BLOCKS = Split(space=(1, 1)), Split(space=(4, 1)), Split(space=(4, 2))
QUICK = ("--quick", "--seconds", "0.01", "--rounds", "3")


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """The command sets it for its own process."""
    monkeypatch.setenv(processes.MEMORY, "0.5")


def command(*arguments):
    """The command in a process of its own, as it is called."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    words = [sys.executable, scaling.__file__, *QUICK, *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(row, devices=8):
    """What every row has."""
    assert max(row["errors"].values()) < 1e-5
    assert row["devices"] == devices
    assert len(row["seconds"]) == len(row["alone_seconds"]) == 3
    assert min(row["seconds"] + row["alone_seconds"]) > 0


def test_the_command(tmp_path):
    """Values, bytes, collectives; the files."""
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("out.json", "table.txt", "chart.png")]
    options = [x for pair in zip(("--output", "--table", "--chart"), files, strict=True) for x in pair]
    text = command(*options, "--whole", "--only", "quick*space8x1,quick*-heads2-space4x1,quick*batch2-heads4")
    document = json.loads(files[0].read_text())
    rows = {row["case"]: row for row in document["results"]}
    assert document["skipped"] == []
    assert document["devices"] == 8
    for row in rows.values():
        check(row)
        assert row["received_bytes"] == row["halo_bytes"]
        assert row["split"] in text
    halves = rows["quick-32x16-w5-forward+backward-strong-heads2-space4x1"]
    assert halves["collectives"] == {
        "collective-permute": 6
    }  # two sides: forward, again, and their gradients
    assert rows["quick-32x16-w5-forward+backward-weak-batch2-heads4"]["collectives"] == {}
    assert files[1].read_text() == text == tables.text(document)
    assert files[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.some(0)  # a minute
def test_everything(tmp_path):
    """All tiny layers over all devices, and a training step."""
    step = "nat_quick-train-strong-batch8"
    command("--whole", "--only", f"quick*,{step}", "--output", tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    layers = [case for case in listing.cases(8, "float32", quick=True) if case.name.startswith("quick")]
    expected = {case.name for case in layers if case.split.devices == 8} | {step}
    assert {row["case"] for row in document["results"]} == expected
    for row in document["results"]:
        check(row)


def test_two_processes(tmp_path):
    """The same bits; half of the devices belongs to each."""
    text = command(
        "--processes", 2, "--output", tmp_path / "out.json", "--only", "*3-forward-strong-space1x2x4"
    )
    document = json.loads((tmp_path / "out.json").read_text())
    one, two = document["results"]
    assert (one["processes"], two["processes"]) == (1, 2)
    check(two)
    assert one["digests"] == two["digests"]
    assert "2 processes instead of one" in text
    assert document["command"].endswith("--only *3-forward-strong-space1x2x4")


# Comparison


def bench():
    return Bench(Plan(tuple(jax.devices()), 3, 0.01, lambda text: None))


def test_a_wrong_halo_is_found(monkeypatch):
    """A device that gets zeros from its neighbours is wrong, one that needs nothing of them is not."""
    monkeypatch.setattr(halo.lax, "ppermute", lambda x, *_: jnp.zeros_like(x))
    heads = Split(heads=2, space=(1, 1))
    rows, skipped = bench().measure([Case(GRID, ROWS), Case(GRID, heads)])
    assert [row["split"] for row in rows] == ["heads2"]
    assert skipped[0]["case"] == "grid-forward+backward-strong-space4x1"
    assert "it is WRONG: the worst relative error of" in skipped[0]["reason"]


@pytest.mark.some(0)  # half a minute
def test_a_wrong_halo_in_training_is_found(monkeypatch):
    """Also where the step computes in bfloat16, whose rounding would hide it."""
    pytest.importorskip("optax")
    monkeypatch.setattr(halo.lax, "ppermute", lambda x, *_: jnp.zeros_like(x))
    cases = [case for case in listing.cases(8, "float32", quick=True) if case.base.direction == "train"]
    halved = [case for case in cases if case.split.space == (2,)]
    assert {case.work.dtype for case in halved} == {"float32", "bfloat16"}
    for case in halved:
        rows, skipped = bench().measure([case])
        assert rows == []
        assert "it is WRONG: the worst relative error of gradients" in skipped[0]["reason"]


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(1)", 1), ("import os; os.abort()", -6)])
def test_a_process_that_fails_ends_the_command(monkeypatch, tmp_path, code, status):
    """Nothing of an earlier run, and nothing of those that went well, is taken for a result."""
    monkeypatch.setattr(processes, "_command", lambda arguments: [sys.executable, "-c", code])
    with pytest.raises(SystemExit, match=f"a process ended with status {status}"):
        processes.both(["--output", str(tmp_path / "out.json")], 2, 8)


def test_an_error_while_timing_is_a_reason(monkeypatch):
    monkeypatch.setattr(Bench, "_timed", lambda bench, entries: 1 / 0)
    rows, skipped = bench().measure([Case(GRID, ROWS)])
    assert rows == []
    assert skipped[0]["reason"] == "it failed: ZeroDivisionError: division by zero"


def test_what_fails_is_a_reason(monkeypatch):
    job = Layer.job
    monkeypatch.setattr(Layer, "job", lambda layer, mesh: job(layer, mesh) if mesh.size == 1 else 1 / 0)
    rows, skipped = bench().measure([Case(GRID, ROWS)])
    assert rows == []
    assert skipped[0]["reason"] == "it failed: ZeroDivisionError: division by zero"


@pytest.fixture
def tokens(rng):
    """Values over eight devices, and on one."""
    x = rng.standard_normal((1, 16, 8, 2, 4)).astype(np.float32)
    places = NamedSharding(BLOCKS.mesh(jax.devices()), P("batch", "x0", "x1", "heads"))
    return x, lambda values: {"out": [jax.device_put(values, places)]}


@pytest.mark.parametrize("fault", [0.0, 1e-2, np.nan])
def test_one_token_that_is_wrong_is_found(tokens, fault):
    x, spread = tokens
    wrong = x.copy()
    wrong[0, 5, 3] *= 1 + fault
    found = compare.errors(spread(wrong), {"out": [jnp.asarray(x)]}, compare.TOKEN)
    np.testing.assert_allclose(found["out"], np.inf if np.isnan(fault) else fault, rtol=1e-3)
    assert (compare.wrong(found, "float32", compare.TOKEN) is None) == (fault == 0)


def test_digests_are_those_of_the_bits(tokens):
    """However they are split; one bit, or two tokens in each other's place, make another one."""
    x, spread = tokens
    expected = compare.digests({"out": [jax.device_put(x, NamedSharding(ALONE.mesh(jax.devices()), P()))]})
    assert compare.digests(spread(x)) == expected
    moved, other = x.copy(), x.copy()
    moved[0, 3:5] = x[0, 4:2:-1]
    other[0, 9, 2, 1, 3] = np.nextafter(x[0, 9, 2, 1, 3], np.float32(9))
    assert expected not in (compare.digests(spread(moved)), compare.digests(spread(other)))


def test_a_gradient_that_is_wrong_is_found(rng):
    """Of one parameter; one that is only noise beside the others is not."""
    right = [rng.standard_normal(s).astype(np.float32) for s in ((8, 4), (16,), ())]
    places = NamedSharding(ROWS.mesh(jax.devices()), P())
    for factor, is_wrong in ((1.2, True), (1.0, False)):
        found = [
            jax.device_put(x, places) for x in (right[0] * factor, right[1], right[2] + np.float32(1e-6))
        ]
        errors = compare.errors(
            {"gradients": found}, {"gradients": list(map(jnp.asarray, right))}, compare.PARAMETER
        )
        assert (compare.wrong(errors, "float32", compare.PARAMETER) is not None) == is_wrong


# Cases and tables


def test_cases():
    """What is asked of four and eight devices."""
    for devices in (4, 8):
        every = listing.cases(devices, "bfloat16", quick=False)
        names = [case.name for case in every]
        assert len(names) == len(set(names))
        splits = {str(case.split) for case in every}
        assert {f"space{devices}x1", f"space{devices // 2}x2", f"heads{devices}", f"batch{devices}"} <= splits
        assert {f"heads2-space{devices // 2}x1", f"batch2-space{devices // 2}x1"} <= splits
        assert {case.base.name for case in every} >= {listing.FLUX, listing.HUNYUAN, listing.NAT, listing.LTX}
        assert {case.base.direction for case in every} >= {FORWARD, BOTH}


def test_training_steps_are_cases():
    for package in ("flax", "optax"):
        pytest.importorskip(package)
    names = {case.name for case in listing.cases(8, "bfloat16", quick=False)}
    for model in ("nat_mini", "imagenet_256"):
        assert {
            f"{model}-train-{end}" for end in ("strong-batch8", "weak-batch8", "strong-batch4-space2")
        } <= names


def test_counts():
    assert [counts(n) for n in (2, 6, 8)] == [[2], [2, 4, 6], [2, 4, 8]]


def test_growing():
    """Every device has what one had, and as much to do."""
    case = Case(GRID, Split(batch=2, heads=3, space=(4, 1)), scaling=WEAK)
    p = case.work.problem
    assert (p.batch, p.heads, p.kv_heads, p.spatial) == (2, 6, 6, (64, 8))
    assert case.work.amount == 24 * case.base.amount


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        (Split(batch=2, space=(1, 1)), "batch of 1 does not divide over 2"),
        (Split(heads=4, space=(1, 1)), "heads of 2 does not divide over 4"),
        (Split(space=(1, 3)), "axis 1 of 8 does not divide over 3"),
    ],
)
def test_obstacles(split, reason):
    assert reason in GRID.obstacle(split)
    huge = Layer(replace(GRID.problem, spatial=(1 << 16, 1 << 14)))
    assert huge.obstacle(ALONE) == "one device has no room for what is compared"


ROW = {
    **{"case": "a", "work": "a", "direction": FORWARD, "dtype": "float32", "scaling": "strong"},
    **{"split": "space4x1", "devices": 4, "processes": 1, "amount": 1.0, "amount_alone": 1.0},
    **{"halo_bytes": 1e6, "received_bytes": 1e6, "sizes": {}, "errors": {"out": 1e-6}, "digests": {"out": 1}},
    **{"collectives": {"collective-permute": 2}, "seconds": [0.4], "alone_seconds": [0.8]},
}
DOCUMENT = {
    **{"date": "2026-01-01", "machine": {"cpu": "a processor"}, "versions": {}, "devices": 4},
    **{"command": "a command", "link": {"bandwidth": 1e8, "latency": 5e-3}, "skipped": []},
}


def test_ideal_and_prediction():
    """By hand: a quarter of 800 ms; 10 ms for a megabyte and 5 ms for each of two messages."""
    np.testing.assert_allclose(tables.ideal(ROW), 0.2)
    np.testing.assert_allclose(tables.efficiency(ROW), 0.5)
    np.testing.assert_allclose(tables.predicted(ROW, DOCUMENT), 0.22)
    weak = {**ROW, "amount": 4.0}
    np.testing.assert_allclose(tables.efficiency(weak), 2.0)
    summed = {**ROW, "halo_bytes": None, "received_bytes": 0, "sizes": {"all-reduce": 2e6}}
    np.testing.assert_allclose(tables.predicted(summed, DOCUMENT), 0.2 + 0.03 + 0.01)


def test_processes_are_set_against_one():
    slow = {**ROW, "processes": 2, "seconds": [0.41], "digests": {"out": 2}}
    slower = {**ROW, "processes": 2, "seconds": [0.42]}
    for row, expected in ((slow, ["1.025", "yes", "1e-06", "no"]), (slower, ["1.050", "no", "1e-06", "yes"])):
        document = {**DOCUMENT, "processes": 2, "results": [ROW, row]}
        assert tables.process_cells(tables.paired(document))[1][3:] == expected
        assert "2 processes instead of one" in tables.text(document, markdown=True)


def test_link():
    """A message takes more than a nanosecond and less than a second; bandwidth is that of the bytes."""
    assert 1e-9 < link.measured(jax.devices()[:2], 1 << 16).latency < 1
    assert Link(1e9, 1e-6).seconds(2e6, 3) == pytest.approx(2.003e-3)


# Command lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "9"], "--devices are 2 to 8, which there are, got 9"),
        (["--devices", "1"], "--devices are 2 to 8, which there are, got 1"),
        (["--rounds", "0"], "--rounds are 1 or more, got 0"),
        (["--only", "no-such-case"], "no case is called no-such-case; --list prints them"),
        (["--devices", "8", "--processes", "3"], "8 devices do not divide over 3 processes"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert scaling.main(["--quick", *arguments]) == 2
    assert capsys.readouterr().err == f"scaling.py: {message}\n"


def test_the_list_and_no_time(capsys, tmp_path):
    assert scaling.main(["--quick", "--list", "--whole"]) == 0
    names = capsys.readouterr().out.split()
    assert "quick-32x16-w5-forward+backward-strong-space4x2" in names
    output = tmp_path / "out.json"
    assert scaling.main([*QUICK, "--total", "-1", "--whole", "--output", str(output)]) == 0
    assert "- quick-32x16-w5-forward+backward-strong-space4x2: no time was left" in capsys.readouterr().out
    assert scaling.main(["--read", str(output), "--markdown"]) == 0

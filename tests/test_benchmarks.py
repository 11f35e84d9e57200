# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: clocks and turns, the check before the timing, a worker's round trip, and the reports."""

import functools
import itertools
import json
import math
import pathlib
import subprocess
import sys
import time
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na.tools import cli, clock, problems, profiler
from jax_na.tools.clock import Sample
from jax_na.tools.problems import BACKWARD, BOTH, BY_NAME, FORWARD, PROBLEMS

for package in ("execnet", "polars"):
    pytest.importorskip(package, reason="benchmarks need the extra bench")

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import check  # noqa: E402
import client  # noqa: E402
import entry  # noqa: E402
import jax_methods  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import page  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402
import session  # noqa: E402
import tiles  # noqa: E402
from method import CPU, GPU, Case, Yardstick, fastest, too_large  # noqa: E402

FILES = sorted((FOLDER / "results").glob("*.json"))
GRID = problems.problem("grid", "", (2, 5, 6), (4, 8, 2), 3, dilation=(1, 2), is_causal=(True, False))
BIASED = replace(GRID, kv_heads=4, rpb=True, is_causal=(False, False))


class Time:
    """A clock that goes on by what calls take."""

    def __init__(self, *durations):
        self.now, self.durations, self.calls = 0.0, itertools.cycle(durations), 0

    def __call__(self):
        return self.now

    def call(self):
        self.now += next(self.durations)
        self.calls += 1


def case(problem, device=GPU, direction=BOTH, **options):
    bounds = profiler.neighborhood(problem).bounds(problem.spatial)
    return Case(replace(problem, direction=direction), device, tuple(bounds), {}, **options)


# Problems


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_problems_are_legal(problem):
    neighborhood = profiler.neighborhood(problem)
    assert neighborhood.axes(problem.spatial)
    assert problem.heads % problem.kv_heads == 0
    assert profiler.flops(problem) <= problem.dense_flops
    both = profiler.flops(replace(problem, direction=BOTH))
    assert both == profiler.flops(problem) + profiler.flops(replace(problem, direction=BACKWARD))


def test_problems_by_pattern():
    names = lambda patterns: [p.name for p in problems.select(patterns)]  # noqa: E731
    assert names("nat-s1-56,nat-s1-56") == ["nat-s1-56"]
    assert names("overhead") == ["tiny-16-w3"]
    assert names("nat-s?-*") == ["nat-s1-56", "nat-s2-28", "nat-s3-14", "nat-s4-7", "nat-s1-56-rpb"]
    assert len(names("core")) == 10
    assert {p.group for p in problems.select("all")} == {"core", "models", "overhead"}
    with pytest.raises(ValueError, match="no problem is called 'nat'"):
        names("core,nat")


def test_a_window_has_one_value_per_axis():
    with pytest.raises(ValueError, match=r"wrong: stride .* for each of 2 axes"):
        problems.problem("wrong", "", (1, 8, 8), (1, 8), 3, stride=(1, 1, 1))


def test_profile_takes_a_problem_by_name(capsys):
    assert cli.main(["profile", "video-8x24x40-s2x4x4", "--dry-run", "--heads", "3", "--stride", "2"]) == 0
    text = capsys.readouterr().out
    assert "batch 1, 8x24x40, kernel 6x12x12, stride 2x2x2, 3 heads of 128, float32" in text


# Clocks


def test_wall_clock_repeats_short_calls():
    fake = Time(1e-3)
    wall = clock.WallClock(fake.call, fake, lambda: fake.now / 4)
    sample = wall.sample()
    assert sample == pytest.approx((1e-3, 5, 0.25))
    assert fake.calls == 1 + 1 + 5  # the estimate, one that warms, and the sample


def test_wall_clock_takes_long_calls_once():
    fake = Time(0.2)
    assert clock.WallClock(fake.call, fake, lambda: 0.0).sample() == pytest.approx((0.2, 1, 0.0))
    assert fake.calls == 2


def test_queue_clock_waits_once_per_sample():
    fake, waits = Time(1e-3), []
    queue = clock.QueueClock(fake.call, waits.append, together=16, now=fake)
    assert queue.estimate == pytest.approx(1e-3 / 16)
    before = len(waits)
    assert queue.sample() == pytest.approx((1e-3 / 16, 50 * 16, 0.0))
    assert len(waits) == before + 1


def test_turns_are_interleaved_and_their_order_changes():
    order = []
    take = lambda name: lambda: order.append(name) or Sample(1.0)  # noqa: E731
    found = clock.in_turns({name: take(name) for name in "abc"}, 6)
    rounds = [tuple(order[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(s) for name, s in found.items()} == {"a": 6, "b": 6, "c": 6}


def test_a_budget_ends_turns():
    fake, ticks = Time(1.0), []

    def take(seconds):
        def sample():
            fake.now += seconds
            return Sample(seconds)

        return sample

    clocks = {"slow": take(5.0), "fast": take(0.5), "broken": lambda: None}
    found = clock.in_turns(clocks, 10, 2.0, ticks.append, fake)
    assert {name: len(s) for name, s in found.items()} == {"slow": 1, "fast": 5, "broken": 0}
    assert len(ticks) == 30


def test_timing():
    timing = clock.Timing(tuple(Sample(float(s)) for s in (4, 1, 2, 3, 5)))
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))
    assert clock.Timing((Sample(2.0),)).quartiles == (2.0, 2.0)


# Programs


@pytest.fixture(scope="module", params=[GRID, BIASED], ids=["grouped", "bias"])
def checked(request):
    """A problem, and a function that gives inputs and right results of its heads."""
    attend = profiler.attention(request.param, "fused", return_lse=True)
    return request.param, functools.cache(jax_methods.Attention(case(request.param), attend).planes)


@pytest.mark.usefixtures("quick_compile")
def test_directions_agree():
    attend, inputs = profiler.attention(BIASED, "fused"), profiler.arrays(BIASED)
    programs = {d: profiler.program(replace(BIASED, direction=d), attend, inputs) for d in problems.PASSES}
    (out,), gradients, both = (programs[d].compile()() for d in (FORWARD, BACKWARD, BOTH))
    assert out.shape == BIASED.out_shape
    assert [g.shape for g in gradients] == list(BIASED.shapes.values())
    for found, right in zip((out, *gradients), both, strict=True):
        np.testing.assert_array_equal(found, right)
    varied = programs[FORWARD].vary
    assert varied(0) is inputs["query"]
    assert not bool(jnp.all(varied(1) == varied(2)))


def test_short_programs_are_queued_together(monkeypatch):
    program = profiler.Program(jnp.sin, lambda i: jnp.full(2, float(i)), ())
    monkeypatch.setattr(profiler, "SHORT_CALL", 10.0)
    assert profiler.clock(program, "gpu").sample().calls % profiler.TOGETHER == 0
    monkeypatch.setattr(profiler, "SHORT_CALL", 0.0)
    assert 1 <= profiler.clock(program, "gpu").sample().calls <= clock.MOST_QUEUED


# The check before the timing


def test_right_results_pass_the_check(checked):
    problem, planes_of = checked
    errors = check.sampled(problem, case(problem).bounds, planes_of)
    assert set(errors) == {"out", "lse", "dquery"} | (set() if problem.rpb else {"dkey", "dvalue"})
    assert max(errors.values()) < 1e-5
    assert check.wrong(errors, "float32", GPU) is None


@pytest.mark.parametrize("name", ["out", "lse", "dquery", "dkey", "dvalue"])
def test_wrong_results_do_not(checked, name):
    problem, planes_of = checked

    def spoiled(batch, kv_head):
        return {n: x * 1.02 if n == name else x for n, x in planes_of(batch, kv_head).items()}

    errors = check.sampled(problem, case(problem).bounds, spoiled)
    if name in errors:
        text = check.wrong({name: errors[name]}, "float32", GPU)
        assert text == f"it is WRONG: the relative error of {name} is 2.0e-02"
    else:
        assert problem.rpb  # the sample has no gradients of keys where there is a bias


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", ["jax-blocked", "jax-dense"])
def test_peers_compute_the_same(name):
    method = next(m for m in jax_methods.METHODS if m.name == name)
    assert method.prepare(case(GRID, direction=FORWARD)).errors()["out"] < 1e-5


def test_not_a_number_is_wrong():
    assert "WRONG" in check.wrong({"out": math.nan}, "bfloat16", CPU)
    right = {"out": np.ones(3)}
    assert math.isnan(check.whole({"out": np.array([1, 2, np.nan])}, right)["out"])
    planes = {name: np.full((5, 6, 1, 8), np.nan, np.float32) for name in ("query", "key", "value", "out")}
    assert math.isnan(check.sampled(GRID, case(GRID).bounds, lambda batch, head: planes)["out"])


# Methods


def test_obstacles_are_said_in_words():
    large = case(BY_NAME["flux-256-w80"])
    methods = {m.name: m for m in jax_methods.METHODS}
    assert methods["naive"].obstacle(large) == "it would take too long"
    assert "scores of all pairs would take 384.0 GB" in methods["jax-dense"].obstacle(large)
    assert methods["cudnn-all"].obstacle(large) == "cuDNN needs a GPU"
    assert "positional bias" in methods["jax-dense"].obstacle(case(BIASED))
    assert "only measured forward" in methods["identity"].obstacle(case(GRID, CPU))
    assert too_large(case(GRID, CPU), "it", 1e9) == "it would take 3.7 GB"
    assert too_large(case(GRID, GPU), "it", 1e9) is None


def test_the_best_configuration_is_chosen():
    def prepared(seconds):
        return Yardstick(case(GRID), lambda: time.sleep(seconds) or (), 0.0)

    def refused():
        raise RuntimeError("no such tile")

    every = {"slow": lambda: prepared(0.1), "refused": refused, "fast": lambda: prepared(0.0)}
    assert fastest(case(GRID, tries=3), every).note == "fast"
    assert fastest(case(GRID, tries=1), every).note == "slow"
    assert fastest(case(GRID, choice="fast"), every).note == "fast"
    with pytest.raises(RuntimeError, match="no such tile"):
        fastest(case(GRID, tries=2), {"refused": refused, "again": refused})


@pytest.mark.usefixtures("cuda_kernels")
def test_tiles_to_try():
    trials = list(tiles.trials(replace(BY_NAME["nat-s1-56-b128"], dtype="bfloat16"), 3))
    assert {t["direction"] for t in trials} == {FORWARD, BACKWARD}
    assert all(t["rank"] >= 0 and json.loads(t["choice"]) for t in trials)
    assert len({(t["kernel"], t["tile"]) for t in trials}) == len(trials)


# Processes


@pytest.fixture
def process(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    found = client.Client(client.Role("jax", CPU, 1, log=str(tmp_path / "worker.log")))
    assert found.missing is None
    yield found
    found.close()


def test_a_run_on_a_cpu(process, tmp_path):
    """A problem is measured; a failure is an obstacle."""
    arguments = ["--methods", "fused,identity", "--directions", "forward+backward", "--dtype", "float32"]
    options = run.parse([*arguments, "--quick", "--specs", "nat-s4-7", "--rounds", "2"])
    options.specs, options.output = [GRID], tmp_path / "out.json"
    found = session.Session(options, arguments, [process])
    found.run()
    document = results.read(options.output)
    fused, sgemm = rows = document["results"]
    assert (fused["method"], sgemm["method"]) == ("fused", "sgemm")
    assert [s["method"] for s in document["skipped"]] == ["identity"]
    assert set(fused["errors"]) == {"out", "dquery", "dkey", "dvalue"}
    assert max(fused["errors"].values()) < 1e-5
    assert fused["flops"] == profiler.flops(replace(GRID, direction=BOTH))
    assert len(fused["seconds"]) == len(fused["waited"]) == 2
    assert (fused["exact"], sgemm["exact"]) == (True, False)
    assert document["versions"]["jax-na"] == jax_na.__version__
    cells = report.cells(results.summary(rows), None)
    assert {row[0]: row[cells[0].index("of matmul")] for row in cells}["sgemm"] == "100%"

    wrong = entry.Entry(process, "no such method", GRID)
    assert entry.measure([wrong], [FORWARD], entry.Plan(1, 1.0)) == []
    assert wrong.skipped()["reason"] == "it failed: KeyError: 'no such method'"


def test_a_missing_framework_is_said_and_what_is_too_slow_is_started_again():
    found = client.Client(client.Role("no_such_framework", CPU, 1))
    assert found.missing == "ModuleNotFoundError: no_such_framework is not installed"
    lost = entry.Entry(found, "fused", GRID)
    assert found.ask("drop", end=0.0) == {"failed": "no time was left"}
    assert found.starts == 2
    assert lost.sample() is None
    assert lost.obstacle == "it failed: its process has ended"
    found.close()


def test_modules_without_jax():
    """What a worker of another framework imports needs nothing but the standard library and numpy."""
    folder = str(pathlib.Path(jax_na.__file__).parent)
    code = f"""import sys; sys.path.insert(0, {str(FOLDER)!r}); import worker
worker.without_jax({folder!r}); import method, check, memory, machine
assert "jax" not in sys.modules"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_peak_memory(monkeypatch):
    monkeypatch.setattr(memory, "CALLS", 1)
    found = memory.peak(lambda: (np.ones(1 << 20),))
    assert not found or found["results"] == 8 << 20


def test_reasons_name_no_folder():
    assert client.reason("cannot open /home/someone/x.so: no\nmore") == "cannot open ...: no"


# Command lines


def test_threads():
    assert run.thread_numbers("all,1,2,1", 4) == [1, 2, 4]
    for wrong in ("0", "5", "two"):
        with pytest.raises(ValueError, match="from 1 to 4"):
            run.thread_numbers(wrong, 4)


@pytest.mark.parametrize("platform", [CPU, GPU])
def test_wrong_usage(platform, capsys):
    arguments = ["--platform", platform]
    assert run.main([*arguments, "--specs", "no-such-problem"]) == 2
    assert "no problem is called 'no-such-problem'" in capsys.readouterr().err
    assert run.main([*arguments, "--dtype", "int8"]) == 2
    assert run.main([*arguments, "--directions", "sideways"]) == 2
    assert "forward+backward, got sideways" in capsys.readouterr().err


def test_options_are_those_of_the_platform():
    assert run.parse(["--platform", GPU]).rounds == run.DEFAULTS["rounds"][GPU]
    quick = run.parse(["--quick", "--seconds", "3"])
    assert (quick.rounds, quick.seconds, quick.tries) == (run.QUICK["rounds"][CPU], 3.0, 1)
    with pytest.raises(ValueError, match="--tiles are those of a GPU"):
        run.parse(["--tiles", "2"])


def test_commands_name_no_folder():
    arguments = ["--output", "/some/where/out.json", "--log=a/b.log", "--seconds", "1"]
    assert machine.command_line(arguments, "run.py").endswith("--output out.json --log=b.log --seconds 1")


def test_the_list_of_problems(capsys):
    assert run.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(problem.name in text for problem in PROBLEMS)


class FakeClient:
    """A process that takes no time: every sample is 2 ms."""

    def __init__(self, methods):
        self.role, self.methods, self.versions, self.starts = client.Role("jax", GPU), methods, {}, 1

    def ask(self, command, end=math.inf, **arguments):
        if arguments.get("method") == "gemm":
            return {"cannot": "it would take too long"}
        trial = {
            "kernel": "na_fused_forward",
            "direction": FORWARD,
            "tile": "portable:8x8,8x8",
            "choice": "{}",
        }
        return {
            "setup": {"setup_s": 1.0, "note": "", "errors": {"out": 1e-4}},
            "start": {"flops": None},
            "sample": Sample(2e-3)._asdict(),
            "ceilings": {"tflop_per_s": 1.0, "gb_per_s": 1.0, "matmul_size": 8, "copy_bytes": 8},
            "tiles": {"trials": [{**trial, "rank": rank} for rank in (0, 1)]},
        }.get(command, {})


def on_gpu(*arguments, methods=("fused", "gemm", "xla"), **files):
    options = run.parse(["--platform", GPU, "--specs", "nat-s3-14", *arguments])
    vars(options).update(files)
    found = session.Session(options, arguments, [FakeClient(dict.fromkeys(methods, ""))])
    found.run()
    return found


def test_a_run_on_a_gpu(tmp_path, capsys):
    output, table = tmp_path / "out.json", tmp_path / "table.txt"
    found = on_gpu("--tiles", "1", "--methods", "gemm,f*", output=output, table=table)
    assert [name for _, name in found.methods()] == ["gemm", "fused"]
    document = results.read(output)
    assert [(r["method"], r["direction"]) for r in document["results"]] == [
        ("fused", direction) for direction in problems.PASSES
    ]
    assert [s["reason"] for s in document["skipped"]] == ["it would take too long"]
    assert len(document["tiles"]) == 2
    assert "nat-s3-14 bfloat16 forward fused: 2 ms" in capsys.readouterr().err
    assert table.read_text() == report.tables(document)
    assert len(results.samples(document)) == 3 * run.DEFAULTS["rounds"][GPU]


def test_no_time_is_a_reason():
    found = on_gpu("--methods", "fused", "--total", "-1", methods=["fused"])
    assert found.content["skipped"][0]["reason"] == "no time was left"


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

# SPDX-License-Identifier: Apache-2.0
"""A run of the benchmarks: worker processes, command lines, a session."""

import math
import pathlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import jax_na
from jax_na.tools import problems, profiler
from jax_na.tools.clock import Sample
from jax_na.tools.problems import BOTH, FORWARD, PROBLEMS

from .benchmark_modules import FOLDER, GRID

# What benchmark_modules has made importable:
# isort: split
import client
import entry
import machine
import memory
import report
import results
import run
import session
from method import CPU, GPU

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

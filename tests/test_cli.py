# SPDX-License-Identifier: Apache-2.0
"""The command jax-na, run in this process: what it prints, stores, and refuses."""

import json
import os
import subprocess
import sys

import jax
import pytest

import jax_na
from jax_na.kernels import register
from jax_na.kernels.platforms import CUDA
from jax_na.kernels.table import NAMES
from jax_na.tools import cli

from . import helpers

SMALL = ["6x6", "--kernel-size", "3", "--heads", "1", "--head-dim", "4", "--rounds", "2"]


def run(capsys, *arguments, status=0):
    """Standard output of the command (standard error if it failed)."""
    assert cli.main(arguments) == status
    output = capsys.readouterr()
    return output.err if status else output.out


def test_info(capsys):
    text = run(capsys, "info")
    assert f"jax-na {jax_na.__version__}, jax {jax.__version__}" in text
    assert "tuning: off" in text
    assert "CUDA kernels: " in text
    lines = [line.split() for line in text.splitlines()]
    first = lines.index(["implementations,", "fastest", "first:"]) + 1
    rows = [line[:2] for line in lines[first : first + len(NAMES)]]
    assert rows == [[n, "runs" if n in helpers.IMPLEMENTATIONS else "cannot"] for n in NAMES]
    assert "without a name (implementation=None): fused, or else gemm, or else xla" in text
    assert ["na_fused_forward", "forward", "tiles", "runs"] in lines
    assert ["na_naive_inverse", "inverse", "naive", "runs"] in lines


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.skipif(helpers.ON_GPU, reason="without a GPU")
def test_info_about_kernels_that_cannot_run_here(capsys):
    text = run(capsys, "info")
    row = next(line for line in text.splitlines() if "forward" in line and "sm90" in line)
    assert "cannot run: JAX has no CUDA device here" in row


@pytest.mark.parametrize("command", [["info"], ["profile", "9x9", "--kernel-size", "3"]])
@pytest.mark.parametrize(
    "asked",
    [
        "no_such_platform",
        pytest.param("cuda", marks=pytest.mark.skipif(helpers.ON_GPU, reason="it is there")),
    ],
)
def test_a_platform_that_is_not_there(command, asked):
    """One line instead of a traceback of JAX, also for a platform that JAX knows but has no plugin for."""
    program = [sys.executable, "-P", "-m", "jax_na.tools.cli", *command]
    environment = {**os.environ, "JAX_PLATFORMS": asked}
    found = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 2
    message = "jax-na: JAX finds none of the platforms that it is told to take"
    assert f"{message}, JAX_PLATFORMS={asked}; " in found.stderr
    assert "Traceback" not in found.stderr


def test_window_as_text(capsys):
    options = ["--kernel-size", "3", "--causal", "0,1", "--query", "1,2", "--ascii"]
    text = run(capsys, "window", "3x5", *options)
    first = "kernel 3x3, causal in axis 1, query 1, 2 Q"
    assert text.splitlines() == [first, "# # # . .", "# # Q . .", "# # # . ."]


def test_window_around_a_circle(capsys):
    text = run(
        capsys, "window", "3x5", "--kernel-size", "3", "--periodic", "0,1", "--query", "1,0", "--ascii"
    )
    assert text.splitlines() == [
        "kernel 3x3, periodic in axis 1, query 1, 0 Q",
        "# # . . #",
        "Q # . . #",
        "# # . . #",
    ]


def test_window_defaults_to_the_centre(capsys):
    text = run(capsys, "window", "9", "--kernel-size", "3", "--dilation", "2", "--causal", "--ascii")
    assert text.splitlines()[1] == "# . # . Q . o . o"


def test_window_as_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
    file = tmp_path / "window.svg"
    assert run(capsys, "window", "9x9", "--output", str(file)) == f"wrote {file}\n"
    assert "<svg" in file.read_text()


def test_profile_as_json(capsys):
    text = run(capsys, "profile", *SMALL, "--json", "--rpb", "--backward")
    document = json.loads(text)
    names = list(document["results"])
    assert names[: len(helpers.IMPLEMENTATIONS)] == list(helpers.IMPLEMENTATIONS)
    assert all(name.startswith("fused ") for name in names[len(helpers.IMPLEMENTATIONS) :])
    assert document["cannot_run"]["jax.nn"] == "this peer is written without a positional bias"
    assert document["problem"]["kv_heads"] == 1
    ceiling = document["ceiling"]
    assert document["useful_flop"] == 7 * 36 * 9 * 8
    for row in document["results"].values():
        assert row["quartiles_s"][0] <= row["median_s"] <= row["quartiles_s"][1]
        assert row["gflop_per_s"] == pytest.approx(document["useful_flop"] / row["median_s"] / 1e9)
        fractions = [row[rate] / ceiling[rate] for rate in ("gflop_per_s", "gb_per_s")]
        assert row["roofline"] == pytest.approx(max(fractions))
        assert row["peak_bytes"] >= document["least_bytes"] / 4


def test_profile_as_a_table(capsys):
    pytest.importorskip("rich", reason="tables are printed with rich")
    text = run(capsys, "profile", *SMALL, "--implementation", "fused", "--implementation", "xla")
    rows = [words[0] for words in map(str.split, text.splitlines()) if words and words[0] in NAMES]
    assert rows == ["fused", "xla"]
    assert "forward: batch 1, 6x6, kernel 3x3, 1 heads of 4, float32" in text


def test_profile_with_peers_and_a_chart(capsys, tmp_path):
    """Everything that is here: implementations, kernels that the planner does not take, jax.nn."""
    pytest.importorskip("rich", reason="tables are printed with rich")
    pytest.importorskip("matplotlib", reason="charts are drawn with matplotlib")
    file = tmp_path / "chart.svg"
    text = run(capsys, "profile", *SMALL, "--direction", "backward", "--chart", str(file))
    assert text.startswith("backward: batch 1, 6x6")
    names = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  ")]
    assert {*helpers.IMPLEMENTATIONS, "jax.nn"} <= {*names}
    assert "by a matrix product of" in text
    assert "cudnn, all tokens cannot run" in text
    assert "FlexAttention cannot run" in text  # it is not installed, or has no backward pass on a CPU
    assert "roofline" in file.read_text()


def test_profile_dry(capsys):
    """What would be timed, and what the kernels would do."""
    text = run(capsys, "profile", *SMALL, "--dtype", "bfloat16", "--dry-run", "--tiles", "1")
    assert "would time fused" in text
    assert "would time jax.nn" in text
    assert "None takes fused" in text
    (header,) = (line for line in text.splitlines() if line.startswith("pass "))
    assert header.split() == ["pass", "kernel", "tiles", "useful", "no", "mask", "GFLOP", "MB", "least", "ms"]
    document = json.loads(run(capsys, "profile", *SMALL, "--dry-run", "--json", "--backward"))
    assert {row["pass_name"][:8] for row in document["kernels"]} == {"forward", "backward"}


def test_profile_dry_without_a_fused_kernel(capsys):
    """No kernels to count, and the reason."""
    before = jax.config.jax_enable_x64
    text = run(capsys, "profile", *SMALL, "--dtype", "float64", "--dry-run")
    jax.config.update("jax_enable_x64", before)
    assert "would not time fused: " in text
    assert "would time xla" in text
    assert "pass " not in text


def test_profile_for_a_data_sheet(capsys):
    """The CUDA kernels on an H100, which need not be here; they must be installed."""
    arguments = ["profile", *SMALL, "--dry-run", "--device", "h100", "--json"]
    if CUDA not in register.TARGETS:
        assert "this installation has no CUDA kernels" in run(capsys, *arguments, status=2)
        return
    rows = json.loads(run(capsys, *arguments))["kernels"]
    assert all(row["seconds"] > 0 for row in rows)


def test_shell_completion():
    """The names of problems, where the shell asks for them."""
    pytest.importorskip("argcomplete", reason="completion needs the extra cli")
    line = "jax-na profile --preset nat-s1-56-"
    variables = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\n"}
    code = "import os, sys; os.dup2(1, 8); from jax_na.tools.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert {"nat-s1-56-rpb", "nat-s1-56-b128"} <= {*done.stdout.split()}, done.stderr


ERRORS = {
    "window too long": (
        ["window", "6x6"],
        "kernel_size 7 * dilation 1 = 7 exceeds length 6 of spatial axis 0",
    ),
    "query outside": (
        ["window", "9x9", "--query", "9,0"],
        "query (9, 0) is not on the grid; the last one is (8, 8)",
    ),
    "kernel of another rank": (["profile", "9x9", "--kernel-size", "3,3,3"], "must have one value per axis"),
    "nothing to tune": (["tune", *SMALL, "--dtype", "float64"], "there is nothing to tune"),
    "no problem": (["profile", "--heads", "2"], "give a grid like 56x56 or a problem's name"),
    "two problems": (["profile", "9", "--preset", "nat-s1-56"], "one of them"),
    "tuning is off": (["tune", *SMALL, "--json", "--tiles", "1"], "JAX_NA_TUNING=off"),
    "heads of no group": (
        ["profile", *SMALL, "--heads", "4", "--kv-heads", "3", "--dry-run"],
        "number of those is 2",
    ),
    "no picture": (["profile", *SMALL, "--chart", "c.txt"], "c.txt must end with one of .png, .svg, .pdf"),
    "no picture of a window": (["window", "9x9", "--output", "w"], "w must end with one of .png, .svg, .pdf"),
    "a chart of nothing": (["profile", *SMALL, "--dry-run", "--chart", "c.png"], "there is nothing to draw"),
    "another device": (["profile", *SMALL, "--device", "h100"], "--device is for --dry-run"),
    "nothing to measure": (["tune", "9x9", "--merge", "f.json"], "leave the problem away"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, capsys):
    arguments, message = ERRORS[name]
    before = jax.config.jax_enable_x64
    text = run(capsys, *arguments, status=2)
    jax.config.update("jax_enable_x64", before)
    assert text.startswith("jax-na: ")
    assert message in text


@pytest.mark.parametrize(
    "arguments", [[], ["window"], ["window", "3y3"], ["profile", "9", "--heads", "0"]], ids=str
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: jax-na" in capsys.readouterr().err

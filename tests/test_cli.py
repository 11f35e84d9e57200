# SPDX-License-Identifier: Apache-2.0
"""The command jax-na, run in this process: what it prints, stores, and refuses."""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest

import jax_na
from jax_na import Neighborhood
from jax_na.kernels import contract, devices, plan, register, tuning
from jax_na.kernels.platforms import CUDA
from jax_na.kernels.table import NAMES
from jax_na.op import Op
from jax_na.tools import cli

from . import helpers
from .cases import Case

SMALL = ["6x6", "--kernel-size", "3", "--heads", "1", "--head-dim", "4", "--rounds", "2"]
OP = Op(Neighborhood((3, 3)), (6, 6), 0.5)
PROBLEM = contract.Problem(OP.axes, "float32", 4, 4)
OTHER = PROBLEM._replace(dtype="bfloat16")


@pytest.fixture
def tuning_file(tmp_path, monkeypatch):
    file = tmp_path / "new" / "tuning.json"
    monkeypatch.setenv("JAX_NA_TUNING", str(file))
    return file


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


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_tune_stores_the_fastest(direction, capsys, tuning_file):
    """Tiles of every pass are timed alone; the implementation is chosen by what all passes take."""
    text = run(capsys, "tune", *SMALL, "--json", "--tiles", "2", "--direction", direction)
    results = json.loads(text)["results"]
    platform = devices.platform_of()
    assert list(json.loads(tuning_file.read_text())["choices"]) == [tuning.key(OP, PROBLEM, platform)]
    choice = tuning.lookup(OP, PROBLEM, platform)
    targets = ["na_fused_forward", "na_fused_backward"][: 1 if direction == "forward" else 2]
    assert list(choice["kernels"]) == targets
    fused = 0.0
    for target, kernels in choice["kernels"].items():
        start = f"{target[3:].replace('_', ' ')} "
        seconds = {name: row["median_s"] for name, row in results.items() if name.startswith(start)}
        assert len(seconds) == 2
        assert kernels in plan.candidates(platform, target, PROBLEM)
        assert seconds[start + kernels] == min(seconds.values())
        fused += min(seconds.values())
    others = {name: results[name]["median_s"] for name in ("gemm", "xla")}
    assert choice["attention"] == min({**others, "fused": fused}.items(), key=lambda item: item[1])[0]


def test_tuning_files_are_merged(capsys, tuning_file, tmp_path):
    """The last one counts, and what others do not know stays."""
    platform = devices.platform_of()
    tuning.store(OP, PROBLEM, {"attention": "gemm"}, platform)
    files = [tmp_path / f"{i}.json" for i in range(2)]
    key = tuning.key(OP, PROBLEM, platform)
    for i, file in enumerate(files):
        choices = {key: {"attention": ("fused", "xla")[i]}, f"other {i}": {}}
        file.write_text(json.dumps({"version": tuning.VERSION, "choices": choices}))
    assert run(capsys, "tune", "--merge", *map(str, files)) == f"merged into {tuning_file}\n"
    assert {*json.loads(tuning_file.read_text())["choices"]} == {key, "other 0", "other 1"}
    assert tuning.lookup(OP, PROBLEM, platform) == {"attention": "xla"}
    files[0].write_text("{}")
    assert "0.json is not a tuning file of jax-na" in run(capsys, "tune", "--merge", str(files[0]), status=2)


def test_a_file_in_use(tuning_file, tmp_path):
    """Before the user's own; the innermost counts."""
    platform = devices.platform_of()
    key = tuning.key(OP, PROBLEM, platform)
    tuning.store(OP, PROBLEM, {"attention": "gemm"}, platform)
    tuning.store(OP, OTHER, {"attention": "gemm"}, platform)
    files = {}
    for name in ("fused", "xla"):
        files[name] = tmp_path / f"{name}.json"
        document = {"version": tuning.VERSION, "choices": {key: {"attention": name}}}
        files[name].write_text(json.dumps(document))
    with jax_na.use_tuning(files["fused"]):
        with jax_na.use_tuning(files["xla"]):
            assert tuning.lookup(OP, PROBLEM, platform) == {"attention": "xla"}
        assert tuning.lookup(OP, PROBLEM, platform) == {"attention": "fused"}
        assert tuning.lookup(OP, OTHER, platform) == {"attention": "gemm"}
    assert tuning.lookup(OP, PROBLEM, platform) == {"attention": "gemm"}
    files["xla"].write_text("[]")
    with pytest.raises(ValueError, match="is not a tuning file"), jax_na.use_tuning(files["xla"]):
        pass


def test_a_choice_that_is_no_longer_there(tuning_file):
    """The cheapest is taken, with one warning."""
    tuning._warn_once.cache_clear()
    platform = devices.platform_of()
    tuning.store(OP, PROBLEM, {"kernels": {"na_fused_forward": "gone:9x9"}}, platform)
    cheapest = plan.cheapest(platform, "na_fused_forward", PROBLEM)
    with pytest.warns(
        UserWarning, match="na_fused_forward has no kernels 'gone:9x9' here for kernel 3x3 on 6x6"
    ):
        assert plan.plan(platform, "na_fused_forward", OP, PROBLEM) == cheapest
    assert plan.plan(platform, "na_fused_forward", OP, PROBLEM) == cheapest


SHARING = """
import sys, warnings
import jax, jax.numpy as jnp
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import jax_na

def compiled(window):
    x = jnp.ones((1, 6, 6, 1, 4))
    attend = jax.jit(lambda x: jax_na.na2d(x, x, x, window))
    return "na_fused_forward" in attend.lower(x).as_text()

with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    alone = compiled(3)
assert all("share_tuning" in str(w.message) for w in found), found
jax_na.share_tuning()
print(alone, len(found), compiled((3, 3)))
"""


@pytest.mark.some(0)  # two processes
@pytest.mark.skipif(helpers.ON_GPU, reason="kernels of the CPU")
def test_processes_share_the_file_of_the_first(tmp_path):
    """Alone they take no file; then both take "xla" as the first one's file says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for i, name in enumerate(("xla", "gemm")):
        file = tmp_path / f"{i}.json"
        choices = {tuning.key(OP, PROBLEM): {"attention": name}}
        file.write_text(json.dumps({"version": tuning.VERSION, "choices": choices}))
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NA_TUNING": str(file)}
        command = [sys.executable, "-P", "-c", SHARING, address, str(i)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    found = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [words[-3:] for words in found] == [["True", "1", "False"]] * 2


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


def test_tune_tries_nothing_when_dry(capsys, tuning_file):
    text = run(capsys, "tune", *SMALL, "--dry-run", "--tiles", "1")
    assert "would time fused" in text
    assert not tuning_file.exists()


TILED = Case("tiled", (7, 9), (3, 3), batch=(1,), dilation=(1, 2), heads=2, rpb=True)


@pytest.mark.skipif(helpers.ON_GPU, reason="tiles of the CPU")
@pytest.mark.parametrize("kernels", ["tiles:16x1", "tiles:8x2", "tiles:1x16", "rows:1", "rows:3", "rows:4"])
def test_every_tile_is_correct(kernels, rng):
    """A stored tile changes the speed of the fused kernels and nothing else."""
    op = Op(Neighborhood(**TILED.spec), TILED.grid, TILED.head_dim**-0.5, "fused")
    inputs, cotangents = TILED.inputs(rng), TILED.cotangents(rng)
    with tuning.trial(op, {"kernels": {"na_fused_forward": kernels, "na_fused_backward": kernels}}):
        found = helpers.evaluate(helpers.attend(TILED, "fused"), inputs, cotangents)
    helpers.assert_correct(TILED, found, inputs, cotangents)


@pytest.mark.skipif(not helpers.ON_GPU, reason="tiles of a GPU")
@pytest.mark.parametrize("rank", [0, 1, 5, 20, 60, -1])
def test_every_kind_of_tile_is_correct(rank, rng):
    """The same on a GPU: the cheapest, others, and the most expensive."""
    op = Op(Neighborhood(**TILED.spec), TILED.grid, TILED.head_dim**-0.5, "fused")
    inputs, cotangents = TILED.inputs(rng), TILED.cotangents(rng)
    problem = contract.problem(op, inputs)
    targets = ("na_fused_forward", "na_fused_backward")
    kernels = {target: plan.candidates(CUDA, target, problem)[rank] for target in targets}
    with tuning.trial(op, {"kernels": kernels}, CUDA):
        found = helpers.evaluate(helpers.attend(TILED, "fused"), inputs, cotangents)
    helpers.assert_correct(TILED, found, inputs, cotangents)


def test_a_stored_choice_is_used(rng, tuning_file):
    """implementation=None follows the file: the bits of "xla" instead of those of "fused"."""
    inputs = TILED.inputs(rng)
    op = Op(Neighborhood(**TILED.spec), TILED.grid, TILED.head_dim**-0.5)
    tuning.store(op, contract.problem(op, inputs), {"attention": "xla"}, devices.platform_of())
    chosen = jax.jit(helpers.attend(TILED, None))(**inputs)
    helpers.assert_identical(chosen, jax.jit(helpers.attend(TILED, "xla"))(**inputs))


def test_broken_files_are_ignored_with_a_warning(tuning_file):
    tuning_file.parent.mkdir()
    tuning_file.write_text("no json")
    with pytest.warns(UserWarning, match="it is ignored: .* is not a tuning file of jax-na"):
        assert tuning.lookup(OP, PROBLEM) == {}


def test_files_of_another_version_are_ignored_with_a_warning(tuning_file):
    tuning_file.parent.mkdir()
    tuning_file.write_text(json.dumps({"version": 1, "choices": {"anything": {"attention": "xla"}}}))
    with pytest.warns(UserWarning, match="it is ignored: .*its version is 1, not 3"):
        assert tuning.lookup(OP, PROBLEM) == {}


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

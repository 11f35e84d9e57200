# SPDX-License-Identifier: Apache-2.0
"""Choices of implementation and tiles: measured, stored, merged, shared, and taken by programs."""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest

import jax_na
from jax_na import Neighborhood
from jax_na.kernels import contract, devices, plan, tuning
from jax_na.kernels.platforms import CUDA
from jax_na.op import Op

from . import helpers
from .cases import Case
from .test_cli import SMALL, run

OP = Op(Neighborhood((3, 3)), (6, 6), 0.5)
PROBLEM = contract.Problem(OP.axes, "float32", 4, 4)
OTHER = PROBLEM._replace(dtype="bfloat16")


@pytest.fixture
def tuning_file(tmp_path, monkeypatch):
    file = tmp_path / "new" / "tuning.json"
    monkeypatch.setenv("JAX_NA_TUNING", str(file))
    return file


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
    files[1].write_bytes(b"\x89PNG" * 1000)
    assert run(capsys, "tune", "--merge", str(files[1]), status=2).endswith("jax-na: it is not JSON\n")
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

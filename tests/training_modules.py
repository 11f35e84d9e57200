# SPDX-License-Identifier: Apache-2.0
"""The modules of examples/training, importable by their names, a folder of images, and a small experiment.

Tests import this module before those: it skips them where the extra train is missing.
"""

import pathlib
import sys

import numpy as np
import pytest

for package in ("flax", "grain", "optax", "orbax.checkpoint", "PIL", "rich"):
    pytest.importorskip(package, reason="the example needs the extra train")

FOLDER = pathlib.Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(FOLDER))

from PIL import Image  # noqa: E402
from training.recipe import EXPERIMENTS  # noqa: E402

SMALL = (
    "epochs=2",
    "cooldown_epochs=0",
    "warmup_epochs=1",
    "batch_size=8",
    "ema=0.9",
    "image_size=32",
    "embed_dim=8",
    "depths=(1, 1)",
    "num_heads=(1, 2)",
    "kernel_size=3",
    "dropout=0.1",
)


def experiment(*settings):
    """A small NAT with everything random that the published recipes have, and a moving average."""
    return EXPERIMENTS["nat_mini"].replaced((*SMALL, *settings))


def write_images(folder, count, classes=("bright", "dark"), seed=0):
    """`count` noisy images of 40 x 36 pixels of each class, in a folder for every class."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (36, 40, 3)) + 130 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:03}.png")

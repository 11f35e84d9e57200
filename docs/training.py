# SPDX-License-Identifier: Apache-2.0
"""Draws docs/training.png, of two runs: python docs/training.py runs/digits runs/digits-diffusion"""

import pathlib
import sys

import matplotlib.image
from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent


def main(classifier: str, diffusion: str) -> None:
    """Their learning curve, and the last samples."""
    curve = pathlib.Path(classifier) / "learning_curve.png"
    samples = max(pathlib.Path(diffusion).glob("samples_*.png"))
    figure = Figure(figsize=(9.6, 5.9), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3.3, 2.6))
    for axes, file in ((top, curve), (bottom, samples)):
        axes.imshow(matplotlib.image.imread(file), interpolation="lanczos")
        axes.set_axis_off()
    figure.savefig(HERE / "training.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])

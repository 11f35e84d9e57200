# SPDX-License-Identifier: Apache-2.0
"""Draws docs/window.png, the picture of the README: python docs/window.py"""

import pathlib

import matplotlib.pyplot as plt

from jax_na import Neighborhood
from jax_na.tools.plot import plot_window

SHAPE = (15, 15)
PICTURES = (
    ("at a corner it slides inward", Neighborhood((7, 7)), (0, 0)),
    ("every second key", Neighborhood((5, 5), dilation=2), (6, 8)),
    ("three by three queries share a window", Neighborhood((7, 7), stride=3), (7, 5)),
    ("not past the query, downwards", Neighborhood((5, 7), is_causal=(True, False)), (8, 7)),
)


def main() -> None:
    figure, axes = plt.subplots(1, len(PICTURES), figsize=(13.0, 4.15), layout="constrained")
    for ax, (title, neighborhood, query) in zip(axes, PICTURES, strict=True):
        plot_window(neighborhood, SHAPE, query, ax=ax)
        ax.set_title(f"{ax.get_title().splitlines()[0]}\n{title}", fontsize=10)
    legends = [ax.get_legend() for ax in axes]
    handles = {h.get_label(): h for legend in legends for h in legend.legend_handles}
    for legend in legends:
        legend.remove()
    figure.legend(handles=[*handles.values()], loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()

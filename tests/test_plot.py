# SPDX-License-Identifier: Apache-2.0
"""Pictures of windows: what every cell is, as text and drawn."""

import itertools

import numpy as np
import pytest

import jax_na
from jax_na import Neighborhood
from jax_na.tools import plot

from .cases import NAMED

matplotlib = pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib")
matplotlib.use("Agg")


@pytest.mark.parametrize("name", ["all-1d", "mixed-2d", "all-3d"])
def test_cells_by_definition(name):
    """The keys that a query sees and the queries that share its window, for every query of a grid."""
    case = NAMED[name]
    neighborhood, mask = Neighborhood(**case.spec), case.geometry.mask.reshape(case.grid * 2)
    for query in itertools.product(*map(range, case.grid)):
        cells = plot.window_cells(neighborhood, case.grid, query)
        assert cells[query] == plot.QUERY
        assert np.array_equal(cells >= plot.KEY, mask[query])
        sharers = np.argwhere(cells >= plot.SHARER)
        assert all(np.array_equal(mask[tuple(sharer)], mask[query]) for sharer in sharers)


def test_dilation_groups_are_tinted():
    cells = plot.window_cells(Neighborhood((2, 2), dilation=(1, 2)), (4, 6), (0, 1))
    group = np.broadcast_to(np.arange(6) % 2 == 1, (4, 6))
    assert np.array_equal(cells > plot.OUTSIDE, group)
    plain = plot.window_cells(Neighborhood((2, 2)), (4, 6), (0, 1))
    assert not np.any(plain == plot.GROUP)


def test_text_in_two_dimensions():
    text = plot.text_window(Neighborhood((3, 3), is_causal=(False, True)), (4, 5), (1, 2), symbols=plot.ASCII)
    assert text.splitlines() == ["# # # . .", "# # Q . .", "# # # . .", ". . . . ."]


def test_text_in_one_and_three_dimensions():
    assert plot.text_window(Neighborhood(2, dilation=2), (6,), (5,), symbols=plot.ASCII) == ". o . # . Q"
    text = plot.text_window(Neighborhood((1, 2, 1)), (2, 2, 2), (1, 0, 1), symbols=plot.ASCII)
    assert text == "[0]\n. .\n. .\n\n[1]\n. Q\n. #"


@pytest.mark.parametrize(
    ("neighborhood", "words"),
    [
        (Neighborhood((7, 7)), "kernel 7x7"),
        (Neighborhood(5, stride=2, is_causal=True), "kernel 5, stride 2, causal"),
        (
            Neighborhood((3, 5), dilation=(1, 2), is_causal=(False, True)),
            "kernel 3x5, dilation 1x2, causal in axis 1",
        ),
    ],
    ids=str,
)
def test_description(neighborhood, words):
    assert str(neighborhood) == words


@pytest.mark.parametrize("shape", [(12,), (8, 9), (6, 4, 5)], ids=str)
def test_picture(shape, tmp_path):
    """It draws every cell once, names what is there, and can be saved."""
    rank = len(shape)
    rest = (1,) * (rank - 1)
    neighborhood = Neighborhood((3,) * rank, stride=(2, *rest), dilation=(2, *rest))
    axes = jax_na.plot_window(neighborhood, shape, (0,) * rank)
    assert sum(mesh.get_array().size for mesh in axes.collections) == np.prod(shape)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(plot.LABELS[::-1])
    assert str(neighborhood) in axes.get_title()
    file = tmp_path / "window.png"
    axes.figure.savefig(file)
    matplotlib.pyplot.close(axes.figure)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_picture_on_given_axes():
    figure = matplotlib.pyplot.figure()
    axes = figure.add_subplot()
    assert plot.plot_window(Neighborhood(3), (6,), (2,), ax=axes) is axes
    matplotlib.pyplot.close(figure)


@pytest.mark.parametrize("query", [(5, 0), (0, -1), (0,)], ids=str)
def test_query_outside_the_grid(query):
    with pytest.raises(ValueError, match="is not on the grid; the last one is \\(4, 5\\)"):
        plot.window_cells(Neighborhood((3, 3)), (5, 6), query)


def test_queries_that_share_a_window():
    text = plot.text_window(Neighborhood(5, stride=3), (9,), (4,), symbols=plot.ASCII)
    assert text == ". . # + Q + # . ."

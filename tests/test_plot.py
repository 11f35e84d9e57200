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


@pytest.mark.parametrize("name", ["all-1d", "mixed-2d", "all-3d"])
def test_attention_map(name, rng):
    """Weights lie where the keys of their slots are, for every query of a grid."""
    case = NAMED[name]
    neighborhood = Neighborhood(**case.spec)
    indices = neighborhood.indices(case.grid)
    for query in itertools.product(*map(range, case.grid)):
        weights, slots = rng.random((2, neighborhood.size), np.float32), indices[query]
        expected = np.full((2, np.prod(case.grid)), np.nan, np.float32)
        expected[:, slots[slots >= 0]] = weights[:, slots >= 0]
        found = neighborhood.attention_map(case.grid, query, weights)
        np.testing.assert_array_equal(found.reshape(2, -1), expected)


def test_attention_map_around_a_circle():
    found = Neighborhood(3, is_periodic=True).attention_map((4,), (0,), [1, 2, 3])
    np.testing.assert_array_equal(found, [2, 3, np.nan, 1])


@pytest.mark.parametrize("channels", [(), (1,), (3,)], ids=str)
def test_attention_over_an_image(channels, rng):
    """The image in the whole range of grays, the weights over all of it, the query where it is."""
    weights, image = rng.random(9), 7 * rng.random((12, 10, *channels)) - 3
    ax = jax_na.plot_attention(Neighborhood((3, 3)), (6, 5), (1, 4), weights, image=image)
    below, above = ax.get_images()
    assert (below.get_array().min(), below.get_array().max()) == (0, 1)
    assert below.get_extent() == above.get_extent() == [-0.5, 9.5, 11.5, -0.5]
    assert above.get_array().count() == 9
    assert ax.lines[0].get_xydata().tolist() == [[8.5, 2.5]]
    matplotlib.pyplot.close(ax.figure)
    alone = jax_na.plot_attention(Neighborhood((3, 3)), (6, 5), (1, 4), weights)
    assert len(alone.get_images()) == 1
    matplotlib.pyplot.close(alone.figure)


def test_attention_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"grid of two axes .* got shape \(5,\)"):
        jax_na.plot_attention(Neighborhood(3), (5,), (2,), np.ones(3))
    with pytest.raises(ValueError, match=r"weights have shape \(4,\); a window of kernel 3x3 has 9 slots"):
        jax_na.plot_attention(Neighborhood((3, 3)), (5, 5), (2, 2), np.ones(4))


@pytest.mark.parametrize("query", [(5, 0), (0, -1), (0,)], ids=str)
def test_query_outside_the_grid(query):
    with pytest.raises(ValueError, match="is not on the grid; the last one is \\(4, 5\\)"):
        plot.window_cells(Neighborhood((3, 3)), (5, 6), query)


def test_queries_that_share_a_window():
    text = plot.text_window(Neighborhood(5, stride=3), (9,), (4,), symbols=plot.ASCII)
    assert text == ". . # + Q + # . ."

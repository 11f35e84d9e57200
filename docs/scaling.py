# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/scaling.md: python docs/scaling.py

Nothing is computed on arrays and nothing is timed: bytes and FLOPs come from formulas, and beside them stand
the bytes of the collective-permutes in programs compiled for eight parts of the CPU.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_na
from jax_na.mesh import communication
from jax_na.mesh.traffic import halo_keys

HEADS, HEAD_DIM = 8, 64
COLUMNS = (
    *("devices", "own keys", "halo keys", "forward bf16", "forward fp32", "HLO"),
    *("both fp32", "HLO", "GFLOP", "FLOP / byte"),
)
MARK = "<!-- tables, by docs/scaling.py -->\n"


class Layer(NamedTuple):
    """Attention over one grid, and the number of devices along each axis that it is cut into."""

    grid: tuple[int, ...]
    kernel_size: tuple[int, ...]
    cuts: Sequence[tuple[int, ...]]


LAYERS = (
    Layer((256, 256), (80, 80), ((2, 1), (4, 1), (8, 1), (2, 2), (4, 2))),
    Layer((56, 56), (7, 7), ((2, 1), (4, 1), (8, 1), (2, 2), (4, 2))),
    Layer((30, 48, 80), (18, 24, 24), ((1, 1, 2), (1, 1, 4), (1, 1, 8), (1, 2, 2), (1, 2, 4))),
    Layer((16, 64, 64), (3, 5, 5), ((1, 2, 1), (1, 4, 1), (1, 8, 1), (1, 2, 2), (1, 4, 2))),
)


def compiled_bytes(layer: Layer, cut: Sequence[int], dtype: str, backward: bool) -> int:
    """What the busiest device gets in a compiled forward pass, or in one of a forward and a backward pass."""
    names = tuple("xyz"[: len(cut)])
    mesh = jax.make_mesh(tuple(cut), names, axis_types=(AxisType.Auto,) * len(cut))
    shape, blocks = (1, *layer.grid, HEADS, HEAD_DIM), NamedSharding(mesh, P(None, *names))
    operands = [jax.ShapeDtypeStruct(shape, dtype, sharding=blocks)] * 3

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax_na.neighborhood_attention(query, key, value, layer.kernel_size, implementation="fused")

    def gradients(cotangent: jax.Array, *operands: jax.Array) -> tuple:
        out, pull = jax.vjp(attend, *operands)
        return out, pull(cotangent)

    call = jax.jit(gradients).lower(operands[0], *operands) if backward else jax.jit(attend).lower(*operands)
    found = communication.collectives(call.compile())
    if others := {c.kind for c in found} - {"collective-permute"}:
        raise AssertionError(f"{layer.grid} in {cut}: {others}")
    return max(communication.received(found).values())


def row(layer: Layer, cut: tuple[int, ...]) -> str:
    neighborhood = jax_na.Neighborhood(layer.kernel_size)
    n, (keys, both_keys) = math.prod(cut), halo_keys(neighborhood, layer.grid, cut)
    flops = neighborhood.flops(layer.grid, HEADS, HEAD_DIM) / n
    key_bytes = HEADS * 2 * HEAD_DIM * 4  # key and value, in float32
    single, half = keys * key_bytes, keys * key_bytes / 2
    forward, both = (compiled_bytes(layer, cut, "float32", backward) for backward in (False, True))
    cells = [
        " x ".join(map(str, cut)),
        f"{math.prod(layer.grid) // n:,}",
        f"{keys:,}",
        f"{half / 1e6:.2f}",
        f"{single / 1e6:.2f}",
        f"{forward / 1e6:.2f}",
        f"{both_keys * key_bytes / 1e6:.2f}",
        f"{both / 1e6:.2f}",
        f"{flops / 1e9:.2f}",
        f"{flops / half:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(layer: Layer) -> str:
    grid, window = ("x".join(map(str, s)) for s in (layer.grid, layer.kernel_size))
    lines = [f"### {grid}, windows of {window}\n", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join(lines + [row(layer, cut) for cut in layer.cuts]) + "\n"


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    page = pathlib.Path(__file__).with_suffix(".md")
    text = page.read_text().partition(MARK)[0]
    page.write_text(text + MARK + "\n" + "\n".join(map(table, LAYERS)))


if __name__ == "__main__":
    main()

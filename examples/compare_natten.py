# SPDX-License-Identifier: Apache-2.0
"""Compares this library with tensors that NATTEN has computed: python examples/compare_natten.py natten.npz

The file is written by numpy.savez, see docs/natten.md. It has query, key, value, out and kernel_size; it may
have stride, dilation, is_causal, scale, rpb and lse, and for gradients d_out with d_query, d_key, d_value and
d_rpb.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jax_na

OPTIONS = ("stride", "dilation", "is_causal")
DIFFERENTIATED = ("query", "key", "value", "rpb")


def read(file: str, heads_first: bool) -> dict[str, np.ndarray]:
    """The arrays of the file, with the heads where this library has them."""
    arrays = dict(np.load(file))
    missing = {"query", "key", "value", "out", "kernel_size"} - set(arrays)
    if missing:
        raise ValueError(f"{file} has no {', '.join(sorted(missing))}")
    tokens = [n for n in arrays if n.removeprefix("d_") in ("query", "key", "value", "out")]
    for name in tokens if heads_first else ():
        arrays[name] = np.moveaxis(arrays[name], 1, -2)
    if heads_first and "lse" in arrays:
        arrays["lse"] = np.moveaxis(arrays["lse"], 1, -1)
    return arrays


def neighborhood_of(arrays: dict[str, np.ndarray]) -> jax_na.Neighborhood:
    """One value for all axes, or one per axis, as NATTEN takes them."""
    rank = arrays["query"].ndim - 3
    given = {name: arrays[name] for name in ("kernel_size", *OPTIONS) if name in arrays}
    return jax_na.Neighborhood(
        **{name: tuple(np.broadcast_to(x, rank).tolist()) for name, x in given.items()}
    )


def computed(arrays: dict[str, np.ndarray], implementation: str) -> dict[str, jax.Array]:
    """What this library makes of the same inputs, by the names of the file."""
    scale = arrays["scale"].item() if "scale" in arrays else None
    inputs = {name: jnp.asarray(arrays[name]) for name in DIFFERENTIATED if name in arrays}

    def attend(inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        options = {
            "scale": scale,
            "return_lse": True,
            "implementation": implementation,
            "precision": "highest",
        }
        tokens, rpb = [inputs[name] for name in DIFFERENTIATED[:3]], inputs.get("rpb")
        return jax_na.neighborhood_attention(*tokens, neighborhood_of(arrays), rpb=rpb, **options)

    out, pull, lse = jax.vjp(attend, inputs, has_aux=True)
    found = {"out": out, "lse": lse}
    if "d_out" in arrays:
        (gradients,) = pull(jnp.asarray(arrays["d_out"]))
        found |= {f"d_{name}": x for name, x in gradients.items()}
    return found


def difference(ours: jax.Array, theirs: np.ndarray) -> float:
    """The largest difference over the largest value."""
    theirs = theirs.astype(np.float64)
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument(
        "--heads-first", action="store_true", help="arrays are [batch, heads, *spatial, head_dim]"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest relative difference, default 1e-4"
    )
    options = parser.parse_args()
    try:
        return compare(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        if not options.heads_first:
            print("if the arrays have the heads before the tokens: --heads-first", file=sys.stderr)
        return 2


def compare(options: argparse.Namespace) -> int:
    """Prints the differences; 0 if all are small."""
    arrays = read(options.file, options.heads_first)
    neighborhood = neighborhood_of(arrays)
    neighborhood.axes(arrays["query"].shape[1:-2])  # raises an error if windows do not fit
    print(f"query {arrays['query'].shape}, {neighborhood}")
    worst = 0.0
    for row in jax_na.implementations(jnp.asarray(arrays["query"]), neighborhood):
        if not row.available:
            print(f"{row.name}: not here, {row.reason}")
            continue
        found = computed(arrays, row.name)
        differences = {name: difference(x, arrays[name]) for name, x in found.items() if name in arrays}
        print(f"{row.name}: " + ", ".join(f"{name} {error:.1e}" for name, error in differences.items()))
        worst = max(worst, *differences.values())
    print("the results agree" if worst <= options.tolerance else f"they differ by {worst:.1e}")
    return int(not worst <= options.tolerance)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Names and layouts of published arrays, and the parameters of ours that hold them."""

import dataclasses
import fnmatch
import functools
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Convert = Callable[[Array], Array]
Arrays = Mapping[str, Array]


def same(x: Array) -> Array:
    return x


def transposed(x: Array) -> Array:
    return x.T


@dataclasses.dataclass(frozen=True)
class Rule:
    """A published array, and the parameter that holds it or a part of it.

    Names may have fields, `{i}`, that stand for integers. If several rules have one published array,
    `to_flax` takes the part out, and the parts that `to_published` gives are joined along the first axis in
    the order of the rules.
    """

    published: str
    path: str
    to_flax: Convert = same
    to_published: Convert = same

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(self.path)))

    def fields(self, path: str) -> dict[str, str] | None:
        """The integers in a path of this rule; None for another path."""
        found = self.pattern.fullmatch(path)
        return None if found is None else found.groupdict()


class Table(NamedTuple):
    """The rules of a model, and arrays of published files that are no parameters: nothing is learned in them.

    `constants` must have the values that they have here; those of `arbitrary` are never read.
    """

    rules: list[Rule]
    constants: Arrays = types.MappingProxyType({})
    arbitrary: Arrays = types.MappingProxyType({})


# Rules for the layers that models are made of.


def linear(published: str, path: str) -> Rule:
    """`weight [out, in]` as `kernel [in, out]`."""
    return Rule(f"{published}.weight", f"{path}.kernel", transposed, transposed)


def affine(published: str, path: str) -> list[Rule]:
    """A linear layer with its bias."""
    return [linear(published, path), Rule(f"{published}.bias", f"{path}.bias")]


def conv(published: str, path: str) -> list[Rule]:
    """`weight [out, in, X, Y]` as `kernel [X, Y, in, out]`, and the bias, if there is one."""

    def to_flax(x: Array) -> Array:
        return x.transpose(2, 3, 1, 0)

    def to_published(x: Array) -> Array:
        return x.transpose(3, 2, 0, 1)

    kernel = Rule(f"{published}.weight", f"{path}.kernel", to_flax, to_published)
    return [kernel, Rule(f"{published}.bias", f"{path}.bias")]


def norm(published: str, path: str) -> list[Rule]:
    """A LayerNorm: `weight` and `bias`."""
    return [Rule(f"{published}.weight", f"{path}.scale"), Rule(f"{published}.bias", f"{path}.bias")]


def heads_in(published: str, path: str, heads: int, *, part: str) -> list[Rule]:
    """A stacked projection, `[3 * heads * head_dim, ...]`, as query, key and value with separate heads.

    `part` is "weight", as kernels [in, heads, head_dim], or "bias".
    """
    name = {"weight": "kernel", "bias": "bias"}[part]
    split, join = _heads(heads, part)

    def take(i: int) -> Convert:
        return lambda x: split(np.split(x, 3)[i])

    return [
        Rule(f"{published}.{part}", f"{path}.{own}.{name}", take(i), join)
        for i, own in enumerate(("query", "key", "value"))
    ]


def head_in(published: str, path: str, heads: int) -> list[Rule]:
    """One of the three projections, `[heads * head_dim, ...]`, with its bias."""
    return [
        Rule(f"{published}.{part}", f"{path}.{name}", *_heads(heads, part))
        for part, name in (("weight", "kernel"), ("bias", "bias"))
    ]


def _heads(heads: int, part: str) -> tuple[Convert, Convert]:
    def split(x: Array) -> Array:
        x = x.reshape(heads, -1, *x.shape[1:])
        return np.moveaxis(x, -1, 0) if part == "weight" else x

    def join(x: Array) -> Array:
        x = np.moveaxis(x, 0, -1) if part == "weight" else x
        return x.reshape(-1, *x.shape[2:])

    return split, join


def heads_out(published: str, path: str, heads: int) -> Rule:
    """`weight [out, heads * head_dim]` as `kernel [heads, head_dim, out]`."""

    def split(x: Array) -> Array:
        return x.T.reshape(heads, -1, len(x))

    def join(x: Array) -> Array:
        return x.reshape(-1, x.shape[-1]).T

    return Rule(f"{published}.weight", f"{path}.kernel", split, join)


def relative_positions(side: int) -> Array:
    """[side^2, side^2]: number of the entry of the positional bias for a query and a key."""
    rows, columns = np.divmod(np.arange(side**2), side)
    by_row, by_column = (x[None, :] - x[:, None] + side - 1 for x in (rows, columns))
    numbers: Array = by_row * (2 * side - 1) + by_column
    return numbers


# From published arrays to parameters by path, and back.


def to_flax(
    table: Table, published: Arrays, shapes: Mapping[str, tuple[int, ...]], skip: Iterable[str] = ()
) -> dict[str, Array]:
    """Arrays for all paths of `shapes` but those whose published names match a pattern of `skip`.

    Raises:
      ValueError: one, with everything that is missing, not expected, of another shape or value.
    """
    found: dict[str, Array] = {}
    wrong: list[str] = []
    left = {name: x for name, x in published.items() if not _matches(name, skip)}
    used = set(table.constants) | set(table.arbitrary)
    for path, shape in shapes.items():
        name, rule = published_name(table, path)
        used.add(name)
        if name in left:
            try:
                found[path] = _shaped(rule.to_flax(np.asarray(left[name])), shape)
            except ValueError:
                wrong.append(f"{name} {tuple(left[name].shape)} cannot become {path} {shape}")
        elif not _matches(name, skip):
            wrong.append(f"{name} is missing")
    for name, value in table.constants.items():
        if name in left and not _equal(np.asarray(left[name]), value):
            wrong.append(f"{name} has other values than this model computes")
    wrong += [f"{name} {tuple(x.shape)} is not expected" for name, x in left.items() if name not in used]
    names = used.union(published)
    unused = (pattern for pattern in skip if not any(_matches(name, (pattern,)) for name in names))
    wrong += [f"{pattern!r} of skip matches no name" for pattern in unused]
    if wrong:
        raise ValueError("published arrays do not fit the model:\n  " + "\n  ".join(dict.fromkeys(wrong)))
    return found


def to_published(table: Table, arrays: Arrays) -> dict[str, Array]:
    """Published arrays of all parameters, by path, with those that are no parameters."""
    order = {id(rule): number for number, rule in enumerate(table.rules)}
    parts: dict[str, dict[int, Array]] = {}
    for path, array in arrays.items():
        name, rule = published_name(table, path)
        parts.setdefault(name, {})[order[id(rule)]] = rule.to_published(np.asarray(array))
    joined = {
        name: np.concatenate([own[i] for i in sorted(own)]) if len(own) > 1 else next(iter(own.values()))
        for name, own in parts.items()
    }
    return {**joined, **table.constants, **table.arbitrary}


def published_name(table: Table, path: str) -> tuple[str, Rule]:
    """The published name of a parameter, and the rule that says so."""
    for rule in table.rules:
        fields = rule.fields(path)
        if fields is not None:
            return rule.published.format(**fields), rule
    raise KeyError(f"no rule has a published name for {path}")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _shaped(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape != shape:
        raise ValueError
    return x


def _equal(found: Array, value: Array) -> bool:
    """Up to the precision of float16, in which files may be stored."""
    return found.shape == value.shape and bool(np.allclose(found.astype(np.float64), value, rtol=1e-3))

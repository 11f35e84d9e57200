# SPDX-License-Identifier: Apache-2.0
"""What the devices of a compiled program send each other, read from its text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import jax

KINDS = ("all-gather", "all-to-all", "all-reduce", "reduce-scatter", "collective-permute")
COLLECTIVE = re.compile(rf" = (\S.*?) ({'|'.join(KINDS)})(-start)?\((.*)")
ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")
PAIR = re.compile(r"\{(\d+),(\d+)\}")


class Collective(NamedTuple):
    """One collective; it counts once, also in a loop."""

    kind: str
    size: int  # bytes of its result on one device
    pairs: tuple[tuple[int, int], ...]  # (source, receiver) of a collective-permute


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """The collectives of a compiled program.

    Example:
        >>> collectives(jax.jit(jnp.sin).lower(1.0).compile())
        []
    """
    return [_read(*match.groups()) for match in COLLECTIVE.finditer(compiled.as_text() or "")]


def _read(result: str, kind: str, start: str | None, rest: str) -> Collective:
    if start and kind != "all-reduce":  # the result is (operands, results, ..)
        result = _elements(result)[1]
    arrays = ARRAY.findall(result)
    sizes = (int(bits or 8) * math.prod(int(n) for n in shape.split(",") if n) for _, bits, shape in arrays)
    pairs = rest.partition("source_target_pairs={")[2].partition("}}")[0] + "}"
    return Collective(kind, sum(sizes) // 8, tuple((int(a), int(b)) for a, b in PAIR.findall(pairs)))


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape; they may be tuples themselves."""
    elements, depth = [""], 0
    for letter in shape.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += letter
    return elements


def received(found: Iterable[Collective]) -> Counter[int]:
    """Bytes that every device gets from others in collective-permutes."""
    total: Counter[int] = Counter()
    for c in found:
        total.update({receiver: c.size for _, receiver in c.pairs})
    return total

# SPDX-License-Identifier: Apache-2.0
"""Published weights in the models of `flax_layers.models`, and back.

`load` and `save` know the names that the authors of a model gave its arrays, and those of the transformers
library where it has the model. Nothing is downloaded: files come from where their authors keep them.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from flax_layers.models.dinat_s import DiNATs
from flax_layers.models.hdit import HDiT
from flax_layers.models.isotropic import Isotropic
from flax_layers.models.nat import NAT
from flax_layers.models.stylenat import StyleNAT
from flax_layers.pretrained import files, hdit, nat, stylenat
from flax_layers.pretrained.rules import Array, Arrays, Table, published_name, to_flax, to_published

__all__ = ["load", "published", "save"]


class Family(NamedTuple):
    """The layouts of a family's files by name, the usual one first; where in a file the arrays may be."""

    layouts: dict[str, Callable[[Any], Table]]
    nested: Sequence[Sequence[str]] = (("model",), ("state_dict",))


FAMILIES: dict[type[nnx.Module], Family] = {
    NAT: Family(
        {
            "original": nat.nat,
            "transformers": nat.transformers("dinat."),
            "transformers-nat": nat.transformers("nat."),
            "transformers-backbone": nat.transformers(""),
        }
    ),
    DiNATs: Family({"original": nat.dinat_s}),
    Isotropic: Family({"original": nat.isotropic, "vit-rpb": nat.vit_rpb}),
    HDiT: Family({"original": hdit.original}, hdit.NESTED),
    StyleNAT: Family({"original": stylenat.original, "legacy": stylenat.legacy}, stylenat.NESTED),
}


def load(model: nnx.Module, source: files.Source, *, skip: Iterable[str] = ()) -> None:
    """Puts published weights into a model, whatever the layout of the file.

    Arrays take the dtypes of the parameters, and their shardings. The model may be an abstract one, made by
    `nnx.eval_shape`: then nothing is initialised in vain.

    Args:
      model: one of `flax_layers.models`.
      source: a file, `.safetensors` or, where torch is installed, `.pth`; or a dictionary of arrays by name.
      skip: patterns of published names, as of a shell, that are not read: their parameters stay as they are.
        `("head.*",)` takes another number of classes, `("norm*", "head.*")` a classifier's weights for a
        model with `features_only`.

    Raises:
      ValueError: one, that lists all names and shapes in which file and model differ.
      FileNotFoundError: if there is no such file.
      ImportError: if the package for this kind of file is missing.

    Example:
      >>> from flax import nnx
      >>> from flax_layers import pretrained
      >>> from flax_layers.models.nat import NAT, NATConfig
      >>> model = NAT(NATConfig(8, depths=(1,), num_heads=(1,)), rngs=nnx.Rngs(0))
      >>> arrays = pretrained.published(model, layout="transformers")
      >>> arrays["classifier.weight"].shape
      (1000, 8)
      >>> pretrained.load(model, arrays)
    """
    family = _family(model)
    arrays = files.read(source, family.nested)
    variables = _variables(model)
    names = {".".join(map(str, path)): path for path in variables}
    shapes = {name: tuple(variables[path].shape) for name, path in names.items()}
    tables = [layout(model) for layout in family.layouts.values()]
    table = max(tables, key=lambda table: _common(table, names, arrays))
    found = to_flax(table, arrays, shapes, tuple(skip))
    placed = {names[name]: _placed(array, variables[names[name]]) for name, array in found.items()}
    nnx.update(model, nnx.from_flat_state(placed))


def published(model: nnx.Module, layout: str = "original") -> dict[str, Array]:
    """The weights of a model by their published names, as NumPy arrays in the published layout.

    Args:
      model: one of `flax_layers.models`.
      layout: "original"; for NAT and DiNAT also "transformers", "transformers-nat" (with "nat." in front of
        the names) and "transformers-backbone" (with nothing); for isotropic models "vit-rpb"; for StyleNAT
        "legacy".

    Raises:
      ValueError: for a layout that the model does not have.
    """
    layouts = _family(model).layouts
    if layout not in layouts:
        raise ValueError(f"layout {layout!r} of {type(model).__name__} must be one of {', '.join(layouts)}")
    variables = _variables(model).items()
    values = {".".join(map(str, path)): variable.get_value() for path, variable in variables}
    return to_published(layouts[layout](model), jax.device_get(values))


def save(model: nnx.Module, path: str | os.PathLike[str], layout: str = "original") -> None:
    """Writes `published(model, layout)` to a file, `.safetensors` or, where torch is installed, `.pth`."""
    files.write(path, published(model, layout))


def _family(model: nnx.Module) -> Family:
    for kind, family in FAMILIES.items():
        if isinstance(model, kind):
            return family
    names = ", ".join(kind.__name__ for kind in FAMILIES)
    raise ValueError(f"{type(model).__name__} has no published names; these models have: {names}")


def _variables(model: nnx.Module) -> dict[tuple[Any, ...], nnx.Variable[Any]]:
    """All arrays of a model by path but the states of random numbers."""
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState))))


def _common(table: Table, paths: Iterable[str], arrays: Arrays) -> int:
    """How many names of the file are names of the layout."""
    expected = {published_name(table, path)[0] for path in paths} | set(table.constants)
    return len(expected & set(arrays))


def _placed(array: Array, variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
    """A variable with another value, of the same dtype, and where the one before is, if it is anywhere."""
    value = variable.get_value()
    sharding = value.sharding if isinstance(value, jax.Array) else None
    return variable.replace(jax.device_put(np.asarray(array).astype(value.dtype), sharding))

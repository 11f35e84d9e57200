# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with orbax: trees of arrays under readable names, restored onto the devices of a template."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class Checkpoints:
    """The last two checkpoints of a folder; a context manager, which waits for what is being written.

    What a killed process has written in part is none: orbax gives a folder its name when it is complete.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def last(self) -> int | None:
        """The step of the last one."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: Any) -> None:
        """Copies the state, and writes it while training goes on, which may use the state up."""
        copy = jax.tree.map(jnp.copy, _named(state))
        self._manager.save(step, args=ocp.args.StandardSave(copy))

    def restore(self, step: int, template: Any) -> Any:
        """The state of a step, as `template` describes it: `jax.ShapeDtypeStruct`s with shardings."""
        names = _named(template)
        values = self._manager.restore(step, args=ocp.args.StandardRestore(names))
        return jax.tree.unflatten(jax.tree.structure(template), [values[name] for name in names])


def _named(state: Any) -> dict[str, Any]:
    """Leaves of a tree by their paths, such as "parameters.levels.0.blocks.1.attn.rpb"."""
    paths, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}

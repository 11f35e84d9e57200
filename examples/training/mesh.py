# SPDX-License-Identifier: Apache-2.0
"""Arrays on devices: images of a batch are split over the mesh axis "data", their rows over "space"."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


class Placement:
    """Where the arrays of a step are.

    The model says nothing of it: jit gets sharded inputs, and attention exchanges the rows that windows
    reach.

    Args:
      data: parts of a batch.
      space: parts of the rows of every image.

    Raises:
      ValueError: there are fewer devices.
    """

    def __init__(self, data: int = 1, space: int = 1) -> None:
        if data < 1 or space < 1 or data * space > jax.device_count():
            raise ValueError(
                f"a mesh of {data} (data) x {space} (space) devices: there are "
                f"{jax.device_count()}; both must be >= 1 and their product at most that"
            )
        mesh = jax.make_mesh(
            (data, space),
            ("data", "space"),
            axis_types=(AxisType.Auto,) * 2,
            devices=jax.devices()[: data * space],
        )
        self.images, self.rows = data, space
        self.everywhere = NamedSharding(mesh, P())
        self._images, self._labels = NamedSharding(mesh, P("data", "space")), NamedSharding(mesh, P("data"))

    def check(self, batch_size: int, image_size: int) -> None:
        """Raises a ValueError if a batch does not divide over the devices."""
        for what, size, parts in (
            ("batch_size", batch_size, self.images),
            ("image_size", image_size, self.rows),
        ):
            if size % parts:
                nearest = max(round(size / parts), 1) * parts
                raise ValueError(
                    f"{what} {size} does not divide over {parts} devices; the nearest that does is {nearest}"
                )

    def batch(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """Images [batch, X, Y, channels] and labels [batch] on their devices."""
        return jax.device_put((images, labels), (self._images, self._labels))

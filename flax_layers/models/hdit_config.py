# SPDX-License-Identifier: Apache-2.0
"""What an HDiT is made of, in numbers, and the configurations that its authors published."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Level:
    """The layers at one resolution.

    Attributes:
      depth: layers; a level other than the deepest one has them twice, on the way down and on the way up.
      width: features of a token, a multiple of `head_dim`.
      kernel_size: keys of a window along both axes, or "full" for global attention.
      head_dim: features of a head, a multiple of 8.
      hidden: features inside of the feed-forward blocks; 3 * width if None.
      dropout: of what the heads return, and inside of the feed-forward blocks.
    """

    depth: int
    width: int
    kernel_size: int | Literal["full"] = 7
    head_dim: int = 64
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % self.head_dim:
            nearest = max(round(self.width / self.head_dim), 1) * self.head_dim
            raise ValueError(
                f"width {self.width} of a level must be a multiple of its head_dim {self.head_dim}; "
                f"the nearest is {nearest}"
            )


@dataclasses.dataclass(frozen=True)
class Mapping:
    """The network that makes one vector of all conditions: `hidden` is 3 * width if None."""

    width: int = 256
    depth: int = 2
    hidden: int | None = None
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class HDiTConfig:
    """What an HDiT is, and the noise levels it is made for.

    Attributes:
      levels: from the highest resolution to the lowest, each at half the side of the one before.
      mapping: the network of the conditions.
      patch_size: pixels along the side of a token of the first level.
      channels: of the images.
      num_classes: classes that an image may have; 0 for a model without them. The label `num_classes` means
        none, for guidance.
      condition_features: features of another condition; 0 for none.
      sigma_data: standard deviation of the data.
      sigma_min, sigma_max: the least and the most noise of sampling.
    """

    levels: tuple[Level, ...]
    mapping: Mapping = Mapping()
    patch_size: int = 4
    channels: int = 3
    num_classes: int = 0
    condition_features: int = 0
    sigma_data: float = 0.5
    sigma_min: float = 1e-2
    sigma_max: float = 160.0

    @property
    def multiple(self) -> int:
        """Sides of images are multiples of this."""
        return self.side_of(len(self.levels) - 1)

    def side_of(self, level: int) -> int:
        """Pixels along the side of a token."""
        return self.patch_size << level


def _widths(*widths: int, full: int, last: int = 2, dropout: float = 0.0) -> tuple[Level, ...]:
    """Levels of depth 2, `full` of them with global attention; `last` is the depth of the deepest."""
    levels = [Level(2, width) for width in widths]
    for i in range(len(widths) - full, len(widths)):
        levels[i] = dataclasses.replace(levels[i], kernel_size="full")
    levels[-1] = dataclasses.replace(levels[-1], depth=last, dropout=dropout)
    return tuple(levels)


_AFHQ = HDiTConfig(_widths(128, 256, 768, 1024, full=2, dropout=0.1), num_classes=3, sigma_max=320.0)
VARIANTS: dict[str, HDiTConfig] = {
    "oxford_flowers_256": HDiTConfig(_widths(128, 256, 512, full=1, last=4, dropout=0.1)),
    "imagenet_128": HDiTConfig(_widths(384, 768, full=1, last=11), Mapping(768, 1), num_classes=1000),
    "imagenet_256": HDiTConfig(_widths(384, 768, 1536, full=1, last=16), num_classes=1000),
    "ffhq_1024": HDiTConfig(_widths(128, 256, 384, 768, 1024, full=2, dropout=0.1), sigma_max=640.0),
    "afhq_512": _AFHQ,
    "afhq_512_wide": dataclasses.replace(_AFHQ, levels=_widths(256, 512, 768, 1024, full=2, dropout=0.1)),
    "cifar_10": HDiTConfig(
        (Level(2, 256, "full", dropout=0.05), Level(4, 512, "full", dropout=0.05)),
        patch_size=2,
        num_classes=10,
        sigma_max=80.0,
    ),
    "mnist": HDiTConfig(  # one level of 7 x 7 tokens: no neighborhood attention
        (Level(8, 256, "full", dropout=0.05),),
        channels=1,
        num_classes=10,
        sigma_data=0.6162,
        sigma_max=80.0,
    ),
}

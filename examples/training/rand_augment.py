# SPDX-License-Identifier: Apache-2.0
"""RandAugment (1909.13719) in the variant of the published recipes: "rand-m9-mstd0.5-inc1".

Two of the operations for an image, each done half of the time, with a magnitude drawn around 9 of 10. All of
them change the image more with a larger magnitude.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LAYERS, PROBABILITY = 2, 0.5
MAGNITUDE, DEVIATION, LARGEST = 9.0, 0.5, 10.0
# The largest turn (degrees), shear, move (share of the side), change of color and light, and threshold moved.
TURN, SHEAR, MOVE, CHANGE, ADDED = 30.0, 0.3, 0.45, 0.9, 110
MEAN_COLOR = (0.485 * 255, 0.456 * 255, 0.406 * 255)
FILL = tuple(round(color) for color in MEAN_COLOR)

# (image, strength in 0 .. 1, generator) to an image
Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def rand_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An RGB image changed by some of `OPERATIONS`."""
    for number in rng.integers(len(OPERATIONS), size=LAYERS):
        if rng.random() < PROBABILITY:
            magnitude = np.clip(rng.normal(MAGNITUDE, DEVIATION), 0, LARGEST)
            image = OPERATIONS[number](image, float(magnitude / LARGEST), rng)
    return image


def signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def turned(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    angle = signed(TURN * strength, rng)
    return image.rotate(angle, resample=resampling(rng), fillcolor=FILL)


def resampling(rng: np.random.Generator) -> Image.Resampling:
    return Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC


def affine(slope: tuple[float, float], move: tuple[float, float]) -> Operation:
    """A shear and a move along x and y, these at full strength; moves are shares of the sides."""

    def apply(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
        amount = signed(strength, rng)
        x, y = (amount * share * side for share, side in zip(move, image.size, strict=True))
        matrix = (1, amount * slope[0], x, amount * slope[1], 1, y)
        method = Image.Transform.AFFINE
        return image.transform(image.size, method, matrix, resample=resampling(rng), fillcolor=FILL)

    return apply


def enhanced(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """More or less of something; 1 is the image itself."""

    def apply(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
        return enhance(image).enhance(max(0.1, 1 + signed(CHANGE * strength, rng)))

    return apply


def posterized(image: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    """At full strength no bit is left, and the image is black."""
    bits = 4 - int(4 * strength)
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def solarized(image: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(256 * strength))


def dark_solarized(image: Image.Image, strength: float, _: np.random.Generator) -> Image.Image:
    """What is dark gets lighter."""
    added = int(ADDED * strength)
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: tuple[Operation, ...] = (
    lambda image, *_: ImageOps.autocontrast(image),
    lambda image, *_: ImageOps.equalize(image),
    lambda image, *_: ImageOps.invert(image),
    turned,
    posterized,
    solarized,
    dark_solarized,
    *map(
        enhanced,
        (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness),
    ),
    *(affine(slope, (0, 0)) for slope in ((SHEAR, 0), (0, SHEAR))),
    *(affine((0, 0), move) for move in ((MOVE, 0), (0, MOVE))),
)

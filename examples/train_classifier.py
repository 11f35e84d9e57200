# SPDX-License-Identifier: Apache-2.0
"""Trains a NAT or DiNAT: on digits that come with a package, or on a folder of images.

    python examples/train_classifier.py                               # 5000 digits of MNIST, some minutes
    python examples/train_classifier.py --platform cuda               # the same in seconds
    python examples/train_classifier.py --data DIR --recipe nat_mini  # a folder for every class
    python examples/train_classifier.py --data DIR --set batch_size=64 epochs=50 image_size=128

Without options it trains a small NAT on 4500 digits and tells the accuracy on 500 others. Checkpoints, the
learning curve, a confusion matrix and attention maps go to the output folder. The same command goes on where
it was stopped or killed, with the same numbers as if it had not been.

A folder has images in `train/CLASS/..` and `val/CLASS/..`, or in `CLASS/..`, of which every tenth is held
out. The recipes are those that the authors of the models published for ImageNet. `--data-parallel` splits
batches over devices, `--space-parallel` the rows of every image. `--weights` begins with published weights.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import time
from typing import Any

import jax

DESCRIPTION = (__doc__ or "").splitlines()[0]
HEADS = ("head.*", "classifier.*")  # by their published names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    add = parser.add_argument
    add("--data", type=pathlib.Path, metavar="DIR", help="a folder of images (default: digits)")
    add("--recipe", help='such as "nat_tiny"; "list" prints all (default: digits, nat_mini with --data)')
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="fields of the recipe and of the model")
    add("--output", type=pathlib.Path, metavar="DIR", help="where results go (default: runs/RECIPE)")
    add("--weights", metavar="FILE", help="published weights to begin with; their head for 1000 classes")
    add("--restart", action="store_true", help="begin anew if there is a run in the output folder")
    add("--seed", type=int, default=42, help="(default: %(default)s)")
    add("--platform", help='such as "cpu" or "cuda" (default: what JAX finds)')
    add("--data-parallel", type=int, default=1, metavar="N", help="parts of a batch (default: %(default)s)")
    add("--space-parallel", type=int, default=1, metavar="N", help="parts of an image (default: %(default)s)")
    add("--cpu-devices", type=int, metavar="N", help="parts of the CPU that are devices")
    add("--implementation", help='of attention, such as "xla" (default: the fastest)')
    add(
        "--remat",
        action="store_true",
        help="compute blocks again in the backward pass, which takes less memory",
    )
    add("--workers", type=int, default=0, help="processes that load images (default: threads)")
    add("--checkpoint-steps", type=int, default=200, metavar="N", help="(default: %(default)s)")
    return parser.parse_args()


def configure(options: argparse.Namespace) -> None:
    """What JAX must know before it looks for devices."""
    if options.platform:
        jax.config.update("jax_platforms", options.platform)
    if options.cpu_devices:
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)


def prepare(options: argparse.Namespace) -> Any:
    """The run that the options ask for."""
    from flax import nnx
    from training import data, loop, recipe, run_folder
    from training.mesh import Placement
    from training.step import Trainer

    name = options.recipe or ("nat_mini" if options.data else "digits")
    if name not in recipe.EXPERIMENTS:
        raise ValueError(f"there is no recipe {name!r}; there are {', '.join(recipe.EXPERIMENTS)}")
    experiment = recipe.EXPERIMENTS[name].replaced(options.set)
    split = data.folder(options.data) if options.data else data.digits()
    sizes: Any = {"num_classes": len(split.classes), "in_channels": split.channels}
    model, how = dataclasses.replace(experiment.model, **sizes), experiment.recipe
    placement = Placement(options.data_parallel, options.space_parallel)
    placement.check(how.batch_size, how.image_size)

    description = {"data": str(options.data or "digits"), "images": len(split.train), "seed": options.seed}
    description |= dataclasses.asdict(model) | dataclasses.asdict(how)
    folder = options.output or pathlib.Path("runs") / name
    run_folder.prepare(folder, description, restart=options.restart)

    def make() -> nnx.Module:
        numerics = {"dtype": how.dtype, "implementation": options.implementation, "remat": options.remat}
        return recipe.MODELS[type(model)](model, rngs=nnx.Rngs(options.seed), **numerics)

    epoch_steps = len(split.train) // how.batch_size
    trainer = Trainer(make, how, epoch_steps, options.seed, placement)
    skip = () if model.num_classes == experiment.model.num_classes else HEADS
    start = functools.partial(trainer.start, options.weights, skip)
    return loop.Run(trainer, start, split, folder, options.seed, options.checkpoint_steps, options.workers)


def report(run: Any, state: Any, history: Any) -> float:
    """Writes the pictures; returns the accuracy on the held-out images."""
    from training import attention_maps, data, loop
    from training import report as pictures

    _, predictions, correct = loop.evaluate(run, state)
    labels = run.split.held_out.labels
    images, _ = next(data.held_out_batches(data.one_of_each_class(run.split.held_out), run.recipe))
    figures = {
        "learning_curve": pictures.learning_curve(history),
        "confusion": pictures.confusion_matrix(labels, predictions, run.split.classes),
        "attention": attention_maps.draw(run.trainer.model(state.evaluated), images),
    }
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(run.folder / f"{name}.png", dpi=110)
    return float(correct.mean())


def main() -> None:
    options = parse()
    began, cpu = time.monotonic(), time.process_time()
    configure(options)

    from rich.console import Console
    from training import loop, recipe
    from training.progress import Bar

    console = Console()
    if options.recipe == "list":
        for name, experiment in recipe.EXPERIMENTS.items():
            console.print(name, experiment.recipe, sep=": ", highlight=False)
        return
    try:
        run = prepare(options)
    except ValueError as error:
        raise SystemExit(f"train_classifier: {error}") from error
    with Bar(console) as bar:
        state, history = loop.train(run, bar.start)
    accuracy = report(run, state, history)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    console.print(
        f"held-out accuracy {accuracy:.2%} after {seconds:.0f} s ({cpu_seconds:.0f} s of processor time on "
        f"{os.cpu_count()} cores), {jax.devices()[0].device_kind}; wrote {run.folder}",
        highlight=False,
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Trains a small HDiT to draw digits: a diffusion model of which a level has neighborhood attention.

    python examples/train_diffusion.py                             # 5000 digits of MNIST, half an hour
    python examples/train_diffusion.py --classifier runs/digits    # and which samples are recognised

Learns from the digits that a package carries. Samples of every class are drawn while it trains, always from
the same noise; they go to the output folder, with checkpoints and the learning curve. The same command goes
on where it was stopped, and with larger --steps where it had ended. A classifier is the output folder of
`train_classifier.py`.
"""

import argparse
import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

DESCRIPTION = (__doc__ or "").splitlines()[0]
ROWS = 4  # of the picture: samples of every class
JUDGED = 20  # samples of every class that the classifier sees


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    add = parser.add_argument
    add("--steps", type=int, default=3000, help="(default: %(default)s)")
    add("--batch-size", type=int, default=64, help="(default: %(default)s)")
    add("--guidance", type=float, default=3.0, help="of samples; 1 for none (default: %(default)s)")
    add("--sampling-steps", type=int, default=20, help="(default: %(default)s)")
    add("--picture-steps", type=int, default=250, metavar="N", help="samples every N steps")
    add("--checkpoint-steps", type=int, default=100, metavar="N", help="(default: %(default)s)")
    add("--classifier", type=pathlib.Path, metavar="DIR", help="a run on digits, which judges the samples")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/digits-diffusion"), metavar="DIR")
    add("--restart", action="store_true", help="begin anew if there is a run in the output folder")
    add("--seed", type=int, default=42, help="(default: %(default)s)")
    add("--platform", help='such as "cpu" or "cuda" (default: what JAX finds)')
    options = parser.parse_args()
    for name in ("steps", "batch_size", "sampling_steps", "picture_steps", "checkpoint_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    return options


def train(options: argparse.Namespace, trainer: Any, console: Any) -> Any:
    """Trains to the end, from the last checkpoint on if there is one; returns the state."""
    from training import data, denoising, report
    from training.checkpoint import Checkpoints
    from training.history import History
    from training.progress import LossBar

    images, folder = data.digits().train, options.output
    classes = np.tile(np.arange(10), ROWS)
    with Checkpoints(folder / "checkpoints") as checkpoints, LossBar(console) as bar:
        start = checkpoints.last or 0
        state = checkpoints.restore(start, trainer.template()) if start else trainer.start()
        history = History(folder / "history.jsonl", start)
        bar.start(start, options.steps)
        source = denoising.batches(images, options.batch_size, options.seed, start)
        for step in range(start + 1, options.steps + 1):
            state, loss = trainer.train(state, *next(source))
            history.add([{"step": step, "loss": float(loss)}])
            bar.step(history.records[-1])
            is_last = step == options.steps
            if is_last or step % options.picture_steps == 0:
                samples = trainer.draw(
                    state, classes, steps=options.sampling_steps, guidance=options.guidance
                )
                figure = report.grid(samples, columns=10, title=f"after {step} steps")
                figure.savefig(folder / f"samples_{step:05}.png", dpi=110)
                console.print(f"wrote {folder / f'samples_{step:05}.png'}", highlight=False)
            if is_last or step % options.checkpoint_steps == 0:
                checkpoints.save(step, state)
    report.loss_curve(history).savefig(folder / "learning_curve.png", dpi=110)
    return state


def recognised(options: argparse.Namespace, trainer: Any, state: Any, classifier: Any) -> float:
    """The share of new samples whose class the classifier sees."""
    classes, right = np.arange(10).repeat(ROWS), 0
    for seed in range(1, 1 + JUDGED // ROWS):
        samples = trainer.draw(state, classes, seed, steps=options.sampling_steps, guidance=options.guidance)
        right += int((classifier(samples) == classes).sum())
    return right / (10 * JUDGED)


def main() -> None:
    options = parse()
    began, cpu = time.monotonic(), time.process_time()
    if options.platform:
        jax.config.update("jax_platforms", options.platform)

    from rich.console import Console
    from training import classifier, denoising, run_folder

    console = Console()
    recipe = denoising.Recipe(steps=options.steps, batch_size=options.batch_size)
    settings = {"seed": options.seed} | dataclasses.asdict(denoising.DIGITS) | dataclasses.asdict(recipe)
    del settings["steps"]  # the rate is constant, so a run may go on for longer
    try:
        judge = classifier.restore(options.classifier) if options.classifier else None
        run_folder.prepare(options.output, settings, restart=options.restart)
    except ValueError as error:
        raise SystemExit(f"train_diffusion: {error}") from error
    trainer = denoising.Trainer(denoising.DIGITS, recipe, side=28, seed=options.seed)
    state = train(options, trainer, console)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    console.print(
        f"{options.steps} steps after {seconds:.0f} s ({cpu_seconds:.0f} s of processor time on "
        f"{os.cpu_count()} cores), {jax.devices()[0].device_kind}; wrote {options.output}",
        highlight=False,
    )
    if judge is not None:
        share = recognised(options, trainer, state, judge)
        console.print(f"{share:.1%} of {10 * JUDGED} samples are recognised", highlight=False)


if __name__ == "__main__":
    main()

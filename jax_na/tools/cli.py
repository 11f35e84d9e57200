# SPDX-License-Identifier: Apache-2.0
"""The command `jax-na`: what is installed, pictures of windows, timings, tuning."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

import jax_na
from jax_na.api.availability import Availability
from jax_na.kernels import chunks, contract, devices, plan, tuning
from jax_na.kernels.table import NAMES
from jax_na.neighborhood import Neighborhood
from jax_na.op import DTYPES
from jax_na.tools import plot, problems, profiler, report
from jax_na.tools.clock import Clock
from jax_na.tools.info import info, require_platform
from jax_na.tools.problems import BOTH, FORWARD, Problem

SIZES = r"\d+([x,]\d+)*"  # like 56x56


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. User errors print one line and return 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"jax-na: {error}", file=sys.stderr)
        return 2
    return 0


def window(options: argparse.Namespace) -> None:
    """The window of one query, as text or as a picture."""
    neighborhood = _neighborhood(options)
    query = options.query or tuple(n // 2 for n in options.shape)
    if options.output:
        figure: Any = plot.plot_window(neighborhood, options.shape, query).figure
        figure.savefig(options.output, dpi=150)
        print(f"wrote {options.output}")
        return
    symbols = plot.ASCII if options.ascii or not _prints(plot.UNICODE) else plot.UNICODE
    text = plot.text_window(neighborhood, options.shape, query, symbols=symbols)
    print(f"{neighborhood}, query {', '.join(map(str, query))} {symbols[plot.QUERY]}")
    print(text)


def profile(options: argparse.Namespace) -> None:
    """Times the implementations on one problem."""
    problem = _problem(options)
    rows = [
        r
        for r in profiler.availability(problem)
        if not options.implementation or r.name in options.implementation
    ]
    names = [r.name for r in rows if r.available]
    missing = {r.name: str(r.reason) for r in rows if not r.available}
    if options.dry_run:
        report.dry_run(problem, options.rounds, names, missing, _notes(rows))
        return
    timings = report.measure({name: _clock(problem, name) for name in names}, options.rounds)
    report.results(problem, timings, missing, as_json=options.json)


def _notes(rows: Iterable[Availability]) -> list[str]:
    """What `implementation=None` takes, and how the others compute the problem where that is unusual."""
    taken = [f"None takes {r.name}" for r in rows if r.taken]
    return taken + [f"{r.name}: {r.note}" for r in rows if r.note]


def tune(options: argparse.Namespace) -> None:
    """Finds and stores the fastest implementation and tiles."""
    problem, platform = _problem(options), devices.platform_of()
    rows = profiler.availability(problem)
    reason = next(r.reason for r in rows if r.name == "fused")
    if reason is not None:
        raise ValueError(f"there is nothing to tune: the fused kernel cannot run this problem, {reason}")
    choices = {f"fused {text}": choice for text, choice in _choices(problem, platform)[: options.tiles]}
    calls = {"xla": _clock(problem, "xla")}
    calls |= {name: _clock(problem, "fused", choice) for name, choice in choices.items()}
    if options.dry_run:
        report.dry_run(problem, options.rounds, list(calls), {})
        return
    timings = report.measure(calls, options.rounds)
    best = min(timings, key=lambda name: timings[name].median)
    choice = choices[min(choices, key=lambda name: timings[name].median)]
    file = tuning.store(profiler.op(problem), {"attention": best.split()[0], **choice}, platform)
    report.results(problem, timings, {}, as_json=options.json)
    print(f"stored {best} in {file}", file=sys.stderr)


def _choices(problem: Problem, platform: str) -> list[tuple[str, tuning.Choice]]:
    """What to try, the cheapest first: a text, and the kernels of the targets with their tiles."""
    targets = ["na_fused_forward", "na_fused_backward"] if problem.needs_gradients else ["na_fused_forward"]
    planned = contract.problem(profiler.op(problem), profiler.types(problem))
    tried = [plan.candidates(platform, t, chunks.first(platform, t, planned)) for t in targets]
    return [
        (" ".join(kernels), {"kernels": dict(zip(targets, kernels, strict=True))})
        for kernels in zip(*tried, strict=False)
    ]


def _clock(problem: Problem, implementation: str, choice: tuning.Choice | None = None) -> Callable[[], Clock]:
    """A function that compiles the problem: there may be many, so each is compiled when its turn comes."""

    def compiled() -> Clock:
        if choice is None:
            return profiler.implementation_clock(problem, implementation)
        with tuning.trial(profiler.op(problem), choice, devices.platform_of()):
            return profiler.implementation_clock(problem, implementation)

    return compiled


def _problem(options: argparse.Namespace) -> Problem:
    """The problem of that grid or name; what was not given is a default, or the problem's own."""
    require_platform()
    if not options.json and not options.dry_run:
        report.rich("rich.table")  # to miss it now, not after the measurement
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    fields = {f.name for f in dataclasses.fields(Problem)}
    given = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    for name, default in (("kv_heads", "heads"), ("value_dim", "head_dim")):
        if default in given:
            given.setdefault(name, given[default])
    base = problems.BY_NAME.get(options.shape)
    base = base or problems.problem("", "", (1, *_sizes(options.shape)), (4, 32), 7)
    for name in base.geometry:
        if len(given.get(name, ())) == 1:
            given[name] *= base.rank
    if "is_causal" in given:
        given["is_causal"] = tuple(map(bool, given["is_causal"]))
    problem = dataclasses.replace(base, **given, direction=BOTH if options.backward else FORWARD)
    profiler.neighborhood(problem).axes(problem.spatial)
    return problem


def _neighborhood(options: argparse.Namespace) -> Neighborhood:
    rank = len(options.shape)
    values = (options.kernel_size, options.stride, options.dilation, tuple(map(bool, options.is_causal)))
    return Neighborhood(*(v * rank if len(v) == 1 else v for v in values))


def _sizes(text: str) -> tuple[int, ...]:
    """ "56x56" or "56,56" or "56"."""
    if not re.fullmatch(SIZES, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 7, 7x7 or 3,7,7")
    return tuple(map(int, re.split("[x,]", text)))


def _grid_or_name(text: str) -> str:
    if text not in problems.BY_NAME and not re.fullmatch(SIZES, text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a grid like 56x56 nor a problem's name")
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def _prints(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jax-na", description="Neighborhood attention for JAX.")
    parser.add_argument("--version", action="version", version=f"jax-na {jax_na.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for run in (info, window, profile, tune):
        summary = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(run.__name__, help=summary, description=summary)
        command.set_defaults(run=run)
        _add_options(command, run)
    return parser


def _add_options(command: argparse.ArgumentParser, run: Callable[..., None]) -> None:
    if run is not info:
        _add_window(command, run is window)
    if run is window:
        command.add_argument("--query", type=_sizes, help="its coordinates (default: the centre)")
        command.add_argument("--output", metavar="FILE", help="write a picture: .png, .svg, .pdf")
        command.add_argument("--ascii", action="store_true", help="text without special symbols")
    if run in (profile, tune):
        _add_problem(command)
    if run is profile:
        help_text = "repeat for several; default: all"
        command.add_argument("--implementation", action="append", choices=NAMES, help=help_text)
    if run is tune:
        help_text = "how many tiles to try, cheapest first"
        command.add_argument("--tiles", type=_count, default=6, help=help_text)


def _add_window(command: argparse.ArgumentParser, grid_only: bool) -> None:
    shape = "the grid, like 56x56 (1 to 3 axes)"
    command.add_argument(
        "shape",
        type=_sizes if grid_only else _grid_or_name,
        help=shape if grid_only else f"{shape}, or a problem by name, like nat-s1-56",
    )
    defaults: dict[str, tuple[int, ...]] = {"--kernel-size": (7,), "--stride": (1,), "--dilation": (1,)}
    for name, default in defaults.items():
        about = f"one value or one per axis, default {default[0]}"
        command.add_argument(name, type=_sizes, default=default if grid_only else None, help=about)
    command.add_argument(
        "--causal",
        dest="is_causal",
        type=_sizes,
        nargs="?",
        const=(1,),
        default=(0,) if grid_only else None,
        help="all axes, or 1 and 0 per axis, like 1,0,0",
    )


def _add_problem(command: argparse.ArgumentParser) -> None:
    for name, default in (("--batch", 1), ("--heads", 4), ("--head-dim", 32)):
        command.add_argument(name, type=_count, help=f"default {default}, or the problem's own")
    command.add_argument("--kv-heads", type=_count, help="default: as many as heads")
    command.add_argument("--value-dim", type=_count, help="default: the head dim")
    command.add_argument("--dtype", choices=DTYPES, help="default float32")
    command.add_argument("--rpb", action="store_true", default=None, help="with a relative positional bias")
    command.add_argument("--backward", action="store_true", help="forward and backward pass together")
    command.add_argument("--rounds", type=_count, default=20, help="samples per implementation, default 20")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--dry-run", action="store_true", help="print what would be measured")


if __name__ == "__main__":
    sys.exit(main())

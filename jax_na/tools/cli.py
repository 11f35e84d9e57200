# SPDX-License-Identifier: Apache-2.0
# PYTHON_ARGCOMPLETE_OK
"""The command `jax-na`: what is installed, pictures of windows, timings, tuning."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

import jax_na
from jax_na.api import arguments
from jax_na.api.availability import Availability
from jax_na.kernels import devices, tuning
from jax_na.kernels.platforms import CUDA
from jax_na.kernels.table import NAMES
from jax_na.neighborhood import Neighborhood
from jax_na.op import DTYPES
from jax_na.tools import plot, problems, profiler, report, simulator, trials, tuner
from jax_na.tools.info import info, require_platform
from jax_na.tools.problems import BACKWARD, BOTH, FORWARD, Problem
from jax_na.tools.roofline import DEVICES

DIRECTIONS = {"forward": FORWARD, "backward": BACKWARD, "both": BOTH}
SIZES = r"\d+([x,]\d+)*"  # like 56x56
PICTURES = (".png", ".svg", ".pdf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. User errors print one line and return 2."""
    parser = _parser()
    if importlib.util.find_spec("argcomplete") is not None:
        importlib.import_module("argcomplete").autocomplete(parser)
    options = parser.parse_args(arguments)
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
    _require_picture(options.output)
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
    """Times implementations, kernels and peers on one problem; with --dry-run, counts what they would do."""
    problem = _problem(options)
    programs, missing = trials.all_of(problem, options.implementation or ())
    if options.dry_run:
        rows, notes = _simulated(problem, options), _notes(profiler.availability(problem))
        report.dry_run(problem, rows, list(programs), missing, notes, as_json=options.json)
        return
    found, ceiling = trials.measured(problem, programs, options.rounds)
    report.results(problem, found, missing, ceiling, as_json=options.json)
    if options.chart:
        report.chart(problem, found, ceiling, options.chart)
        print(f"wrote {options.chart}", file=sys.stderr)


def _simulated(problem: Problem, options: argparse.Namespace) -> list[simulator.Row]:
    """What the fused kernels do: those for a GPU by its data sheet, or those that run here, if any do."""
    if options.device:
        return simulator.rows(problem, CUDA, DEVICES[options.device], options.tiles)
    if "fused" in trials.implementations(problem)[1]:
        return []
    return simulator.rows(problem, devices.platform_of(), None, options.tiles)


def _notes(rows: Iterable[Availability]) -> list[str]:
    """What `implementation=None` takes, and how the others compute the problem where that is unusual."""
    taken = [f"None takes {r.name}" for r in rows if r.taken]
    return taken + [f"{r.name}: {r.note}" for r in rows if r.note]


def tune(options: argparse.Namespace) -> None:
    """Finds and stores the fastest implementation and tiles; with --merge, takes what others have found."""
    if options.merge:
        if options.shape is not None or options.preset is not None:
            raise ValueError("--merge takes what is in files, and measures nothing: leave the problem away")
        print(f"merged into {tuning.merge(options.merge)}")
        return
    problem = _problem(options)
    if options.dry_run:
        every, _ = tuner.to_measure(problem, options.tiles)
        report.dry_run(problem, [], list(every), {}, as_json=options.json)
        return
    tuned = tuner.tune(problem, options.tiles, options.rounds)
    file = tuner.store(problem, tuned.choice)
    report.results(problem, tuned.found, {}, tuned.ceiling, as_json=options.json)
    print(f"stored {json.dumps(tuned.choice)} in {file}", file=sys.stderr)


def _problem(options: argparse.Namespace) -> Problem:
    """The problem of that grid or name; what was not given is a default, or the problem's own."""
    require_platform()
    _require_used(options)
    if not options.json and not options.dry_run:
        report.rich("rich.table")  # to miss it now, not after the measurement
        if getattr(options, "chart", None):
            report.figure_class()
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    fields = {f.name for f in dataclasses.fields(Problem)} - {"direction"}
    given = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    for name, default in (("kv_heads", "heads"), ("value_dim", "head_dim")):
        if default in given:
            given.setdefault(name, given[default])
    if (options.shape is None) == (options.preset is None):
        raise ValueError("give a grid like 56x56 or a problem's name, or a name as --preset, one of them")
    base = problems.BY_NAME.get(options.preset or options.shape)
    base = base or problems.problem("", "", (1, *_sizes(options.shape)), (4, 32), 7)
    for name in base.geometry:
        if len(given.get(name, ())) == 1:
            given[name] *= base.rank
    if "is_causal" in given:
        given["is_causal"] = tuple(map(bool, given["is_causal"]))
    problem = dataclasses.replace(base, **given, direction=DIRECTIONS[options.direction])
    profiler.neighborhood(problem).axes(problem.spatial)
    arguments.require_groups(problem.heads, problem.kv_heads)
    return problem


def _require_used(options: argparse.Namespace) -> None:
    """Options that would do nothing are errors, and so are charts that cannot be written, before the work."""
    chart, device = getattr(options, "chart", None), getattr(options, "device", None)
    if device and not options.dry_run:
        raise ValueError("--device is for --dry-run; without it, the machine here is measured")
    if chart and options.dry_run:
        raise ValueError("--chart draws what was measured; with --dry-run there is nothing to draw")
    _require_picture(chart)


def _require_picture(file: str | None) -> None:
    if file and not file.endswith(PICTURES):
        raise ValueError(f"{file} must end with one of {', '.join(PICTURES)}")


def _neighborhood(options: argparse.Namespace) -> Neighborhood:
    rank = len(options.shape)
    flags = (tuple(map(bool, given)) for given in (options.is_causal, options.is_periodic))
    values = (options.kernel_size, options.stride, options.dilation, *flags)
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
        help_text = "repeat for several; default: all, with their kernels, and peers"
        command.add_argument("--implementation", action="append", choices=NAMES, help=help_text)
        command.add_argument("--chart", metavar="FILE", help="draw the times: .png, .svg, .pdf")
        help_text = "with --dry-run: a GPU by its data sheet, instead of the machine here"
        command.add_argument("--device", choices=DEVICES, help=help_text)
    if run is tune:
        help_text = "add the choices of these files to yours, instead"
        command.add_argument("--merge", nargs="+", type=pathlib.Path, metavar="FILE", help=help_text)
    if run in (profile, tune):
        help_text = "how many tiles of a kernel to try or count, the cheapest first"
        command.add_argument("--tiles", type=_count, default=6 if run is tune else 3, help=help_text)


def _add_window(command: argparse.ArgumentParser, grid_only: bool) -> None:
    shape = "the grid, like 56x56 (1 to 3 axes)"
    command.add_argument(
        "shape",
        nargs=None if grid_only else "?",
        type=_sizes if grid_only else _grid_or_name,
        help=shape if grid_only else f"{shape}, or a problem by name, like nat-s1-56",
    )
    defaults: dict[str, tuple[int, ...]] = {"--kernel-size": (7,), "--stride": (1,), "--dilation": (1,)}
    for name, default in defaults.items():
        about = f"one value or one per axis, default {default[0]}"
        command.add_argument(name, type=_sizes, default=default if grid_only else None, help=about)
    for name in ("causal", "periodic") if grid_only else ("causal",):
        command.add_argument(
            f"--{name}",
            dest=f"is_{name}",
            type=_sizes,
            nargs="?",
            const=(1,),
            default=(0,) if grid_only else None,
            help="all axes, or 1 and 0 per axis, like 1,0,0",
        )


def _add_problem(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", choices=problems.BY_NAME, metavar="NAME", help="a problem by its name")
    for name, default in (("--batch", 1), ("--heads", 4), ("--head-dim", 32)):
        command.add_argument(name, type=_count, help=f"default {default}, or the problem's own")
    command.add_argument("--kv-heads", type=_count, help="default: as many as heads")
    command.add_argument("--value-dim", type=_count, help="default: the head dim")
    command.add_argument("--dtype", choices=DTYPES, help="default float32")
    command.add_argument("--rpb", action="store_true", default=None, help="with a relative positional bias")
    about = "forward (the default), backward, or both together"
    command.add_argument("--direction", choices=DIRECTIONS, default="forward", help=about)
    command.add_argument(
        "--backward", dest="direction", action="store_const", const="both", help="--direction both"
    )
    command.add_argument("--rounds", type=_count, default=20, help="samples per implementation, default 20")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--dry-run", action="store_true", help="measure nothing, print what would be done")


if __name__ == "__main__":
    sys.exit(main())

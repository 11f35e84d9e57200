# SPDX-License-Identifier: Apache-2.0
"""Scaling over the devices of one host: python benchmarks/scaling.py [--quick] [--processes N]

Layers of attention, and training steps, are split over 2, 4, .. and all devices along batch, heads, the axes
of the grid, and two of these. What they compute is compared with one device; what they send is counted in the
compiled program; and they are timed in turns with one device. Of a strong case the problem is the same on
more devices, of a weak one every device has as much as the one. docs/scaling.md says what to expect.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent / "models"))
sys.path.insert(0, str(pathlib.Path(__file__).parent / "devices"))

import jax
import link
import machine
import processes
import tables
from clocks import most
from listing import cases
from measure import Bench, Plan
from processes import Place
from splits import Case

PACKAGES = ("jax-na", "jax", "jaxlib", "flax", "optax", "numpy", "jax-cuda13-plugin", "jax-cuda12-plugin")
MESSAGE, QUICK_MESSAGE = 64 << 20, 1 << 16  # bytes of those that measure the bandwidth
NO_TIME = "no time was left"  # not a failure
Document = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--devices", type=int, metavar="N", help="the first N of those that there are; default all")
    add("--processes", type=int, default=1, metavar="N", help="also in N processes that divide the devices")
    add("--only", default="*", metavar="PATTERNS", help="cases by name, as --list has them")
    add("--whole", action="store_true", help="only splits over all devices")
    add("--dtype", choices=("bfloat16", "float32"), help="of layers; default bfloat16, with --quick float32")
    add("--rounds", type=int, default=7, help="samples per case; default 7")
    add("--seconds", type=float, default=0.3, help="of calls that a case is timed for; default 0.3")
    add("--total", type=float, default=math.inf, help="begin nothing after so many seconds")
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every group of cases")
    add("--table", type=pathlib.Path, metavar="FILE", help="write the tables here as well")
    add("--chart", type=pathlib.Path, metavar="PNG", help="draw this picture; needs matplotlib")
    add("--read", type=pathlib.Path, metavar="JSON", help="tables and chart of these results, nothing is run")
    add("--markdown", action="store_true", help="tables as Markdown")
    add("--quick", action="store_true", help="tiny problems, also on eight parts of a CPU: does it run?")
    add("--list", action="store_true", help="print the cases and stop")
    add("--count", action="store_true", help=argparse.SUPPRESS)  # prints the number of devices
    add("--child", action="store_true", help=argparse.SUPPRESS)  # what is wrong is for another one to say
    add("--place", type=Place.read, default=Place(), help=argparse.SUPPRESS)  # one of several processes
    return p


def chosen(options: argparse.Namespace, devices: int) -> list[Case]:
    """The cases that are asked for; a ValueError if there are none, or not so many devices."""
    if jax.device_count() < 2:
        raise ValueError("scaling needs two devices, and there is one")
    if not 2 <= devices <= jax.device_count():
        raise ValueError(f"--devices are 2 to {jax.device_count()}, which there are, got {devices}")
    if options.rounds < 1:
        raise ValueError(f"--rounds are 1 or more, got {options.rounds}")
    dtype = options.dtype or ("float32" if options.quick else "bfloat16")
    every = [
        c for c in cases(devices, dtype, options.quick) if c.split.devices == devices or not options.whole
    ]
    patterns = options.only.split(",")
    for pattern in patterns:
        if not fnmatch.filter([case.name for case in every], pattern):
            raise ValueError(f"no case is called {pattern}; --list prints them")
    return [case for case in every if any(fnmatch.fnmatch(case.name, p) for p in patterns)]


def say(text: str) -> None:
    """To the standard error, of the first process."""
    if jax.process_index() == 0:
        print(f"{time.monotonic() - START:5.0f} s  {text}", file=sys.stderr, flush=True)


START = time.monotonic()


def conditions(options: argparse.Namespace, arguments: Sequence[str], devices: Sequence[Any]) -> Document:
    """What a results file says besides results."""
    on_gpu = jax.default_backend() == "gpu"
    measured = link.measured(devices, QUICK_MESSAGE if options.quick else MESSAGE)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": machine.command_line(arguments, "scaling.py"),
        "machine": machine.describe() | (machine.gpu() if on_gpu else {}),
        "versions": machine.versions(PACKAGES),
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "link": measured._asdict(),
        "options": {"rounds": options.rounds, "seconds": options.seconds},
        "processes": jax.process_count(),
    }


def run(options: argparse.Namespace, arguments: Sequence[str]) -> Document:
    """Measures group by group."""
    number = options.devices or jax.device_count()
    found = chosen(options, number)
    devices = tuple(jax.devices()[:number])
    content = {**conditions(options, arguments, devices), "results": [], "skipped": []}
    say(tables.conditions(content))
    bench = Bench(Plan(devices, options.rounds, options.seconds, say))
    for _, group in itertools.groupby(found, lambda case: case.group):
        members = list(group)
        if most(time.monotonic() - START) > options.total:
            skipped = [{"case": case.name, "reason": NO_TIME} for case in members]
            content["skipped"] += skipped
            continue
        rows, skipped = bench.measure(members)
        content["results"] += rows
        content["skipped"] += skipped
        for line in [tables.summary(row, content) for row in rows] + [tables.reason(s) for s in skipped]:
            say(line)
        write(content, options)
    return content


def write(content: Document, options: argparse.Namespace) -> None:
    """All files that are asked for, by the first process."""
    if options.place.process:
        return
    if options.output is not None and options.output != options.read:
        options.output.write_text(json.dumps(content, indent=1) + "\n")
    if options.table is not None:
        options.table.write_text(tables.text(content, options.markdown))


def document(options: argparse.Namespace, arguments: Sequence[str]) -> Document:
    """What is read, or measured in one process or several."""
    if options.read is not None:
        content: Document = json.loads(options.read.read_text())
        return content
    if options.processes > 1 and options.place.number == 1:
        content = processes.both(arguments, options.processes, options.devices)
        return {**content, "command": machine.command_line(arguments, "scaling.py")}
    return run(options, arguments)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 1 if a case failed or is wrong."""
    options = parser().parse_args(arguments)
    processes.join(options.place, options.quick)
    if options.count:
        print(jax.device_count())
        return 0
    try:
        if options.list:
            print("\n".join(case.name for case in chosen(options, options.devices or jax.device_count())))
            return 0
        content = document(options, arguments)
    except (ValueError, OSError) as error:
        print(f"scaling.py: {error}", file=sys.stderr)
        return 2
    write(content, options)
    print(tables.text(content, options.markdown), end="")
    if options.chart is not None and options.place.process == 0:
        import picture

        picture.draw(content, options.chart)
    return 1 if any(s["reason"] != NO_TIME for s in content["skipped"]) and not options.child else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

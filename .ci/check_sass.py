# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the CUDA kernels: python .ci/check_sass.py MODULE.so [--cuobjdump PATH] [--all]

The kernels must not spill registers, but for a few (which are listed), on any architecture, and the fused
ones must use the instructions they were written for: tensor cores, loads of matrices from shared memory,
asynchronous copies; those for compute capability 9.0 its tensor cores and its tensor copies. Those are looked
for in the code of two architectures: all come from the same source, and reading them takes long.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

CODE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*)")
FUNCTION = re.compile(r"\s*Function : (\S+)")
ARCHITECTURE = re.compile(r"arch = (sm_\w+)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
COUNTED = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "UTMALDG", "R2P", "LDL", "STL")


@dataclasses.dataclass
class Kernel:
    """One kernel for one architecture."""

    architecture: str
    name: str
    registers: int = 0
    stack: int = 0  # bytes per thread: spilled registers, and arrays with an index that is not known
    counts: collections.Counter[str] | None = None  # of instructions, if they have been read


@dataclasses.dataclass(frozen=True)
class Rule:
    """What kernels whose name matches must have; the first rule that matches counts."""

    name: str
    needs: tuple[str, ...]
    most_stack: int  # bytes per thread

    def broken_by(self, kernel: Kernel) -> list[str]:
        counts = kernel.counts
        faults = [] if counts is None else [f"no {opcode}" for opcode in self.needs if not counts[opcode]]
        return faults + ([f"{kernel.stack} bytes of stack"] if kernel.stack > self.most_stack else [])


RULES = (
    # Of 256 features per head a few registers are spilled, outside of the loop.
    Rule("fused_hopper_", ("HGMMA", "UTMALDG", "R2P"), most_stack=16),
    # They have the registers that several blocks leave them; what spills is what they keep from head to head.
    Rule("fused_halo_", ("HMMA", "LDSM", "LDGSTS"), most_stack=40),
    # Kernels are shaped to need just the registers that there are; on some GPUs a few spill, up to this.
    Rule("fused_", ("HMMA", "LDSM", "LDGSTS"), most_stack=16),
    Rule("gemm_", ("HMMA", "LDGSTS"), most_stack=0),
    Rule("naive_inverse_kernelId", (), most_stack=32),  # of float64, which is for checks
    Rule("naive_", (), most_stack=24),
)


def lines(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed with {process.returncode}")


def kernels(cuobjdump: str, module: str, architectures: list[str]) -> list[Kernel]:
    """All kernels of a module; for these architectures with counts of their instructions."""
    found: dict[str, dict[str, Kernel]] = collections.defaultdict(dict)
    architecture, current = "", Kernel("", "")
    for line in lines([cuobjdump, "--dump-resource-usage", module]):
        if match := ARCHITECTURE.search(line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            current = found[architecture].setdefault(match[1], Kernel(architecture, match[1]))
        elif match := USAGE.search(line):
            current.registers, current.stack = int(match[1]), int(match[2]) + int(match[4])
    chosen = {a: by_name for a, by_name in found.items() if a in architectures}
    with concurrent.futures.ProcessPoolExecutor() as pool:
        counts = [pool.submit(instructions, cuobjdump, module, a) for a in chosen]
        for by_name, count in zip(chosen.values(), counts, strict=True):
            for name, opcodes in count.result().items():
                by_name[name].counts = opcodes
    return [kernel for by_name in found.values() for kernel in by_name.values()]


def instructions(cuobjdump: str, module: str, architecture: str) -> dict[str, collections.Counter[str]]:
    """How many instructions of every kind each function of an architecture has."""
    counts: dict[str, collections.Counter[str]] = {}
    current = collections.Counter[str]()
    for line in lines([cuobjdump, "--dump-sass", "-arch", architecture, module]):
        if match := CODE.match(line):
            current[match[1]] += 1
        elif match := FUNCTION.match(line):
            current = counts.setdefault(match[1], collections.Counter())
    return counts


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Readable names, if c++filt is there."""
    names = list(names)
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return {name: name for name in names}
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: short(line) for name, line in zip(names, text.splitlines(), strict=True)}


def short(signature: str) -> str:
    """A kernel's name with its template arguments, without namespaces and parameters."""
    signature = re.sub(r"\(anonymous namespace\)::|jax_na::|cuda::|portable::|^void ", "", signature)
    return re.sub(r"\([A-Za-z_].*$", "", signature)


def families(found: Iterable[Kernel], names: dict[str, str]) -> dict[tuple[str, str], list[Kernel]]:
    """The kernels by architecture and name without template arguments."""
    groups: dict[tuple[str, str], list[Kernel]] = collections.defaultdict(list)
    for kernel in found:
        groups[kernel.architecture, names[kernel.name].split("<")[0]].append(kernel)
    return groups


def table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def row(architecture: str, name: str, group: list[Kernel]) -> list[str]:
    worst = max(kernel.registers for kernel in group), max(kernel.stack for kernel in group)
    cells = [architecture, name, str(len(group)), *map(str, worst)]
    counts = [kernel.counts for kernel in group if kernel.counts is not None]
    if not counts:
        return cells + [""] * (1 + len(COUNTED))
    total = sum(counts, collections.Counter[str]())
    return [*cells, str(total.total()), *(str(total[opcode]) for opcode in COUNTED)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument(
        "--arch", default="sm_80,sm_90a", help="whose instructions to read, default sm_80,sm_90a"
    )
    parser.add_argument("--all", action="store_true", help="one line per kernel instead of one per family")
    options = parser.parse_args()
    found = kernels(options.cuobjdump, options.module, options.arch.split(","))
    names = demangled(sorted({kernel.name for kernel in found}))
    header = ["architecture", "kernel", "number", "registers", "stack", "instructions", *COUNTED]
    single = {(k.architecture, names[k.name]): [k] for k in found}
    groups = single if options.all else families(found, names)
    print(table([header, *(row(*key, group) for key, group in sorted(groups.items()))]))
    broken = []
    for kernel in sorted(found, key=lambda k: (k.architecture, names[k.name])):
        title = f"{kernel.architecture} {names[kernel.name]}"
        rule = next((rule for rule in RULES if re.search(rule.name, kernel.name)), None)
        faults = ["no rule in .ci/check_sass.py"] if rule is None else rule.broken_by(kernel)
        broken += [f"{title}: {', '.join(faults)}"] if faults else []
        if kernel.stack and not faults:
            print(f"tolerated: {title}: {kernel.stack} bytes of stack")
    print(
        "\n".join(broken)
        or f"{len(found)} kernels have the instructions they were written for, and room for them"
    )
    return bool(broken or not found)


if __name__ == "__main__":
    sys.exit(main())

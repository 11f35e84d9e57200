# SPDX-License-Identifier: Apache-2.0
"""Checks a Python module that was linked for macOS elsewhere: python .ci/macho.py FILE

It is a library for Apple's processors, gives Python its function, and leaves no symbols open but Python's:
the linker lets any symbol be open, and one that is missing would show on a Mac only.
"""

from __future__ import annotations

import pathlib
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

MAGIC, ARM64, LIBRARIES = 0xFEEDFACF, 0x0100000C, (6, 8)  # MH_DYLIB, MH_BUNDLE
SYMBOL_TABLE = 2  # LC_SYMTAB
IS_DEBUG, KIND, IS_EXTERNAL, UNDEFINED = 0xE0, 0x0E, 0x01, 0x00  # of n_type
OPEN = (0, 0xFE)  # n_desc >> 8 where no library is named that has it: zig writes 0, Apple's linker 0xFE


class Symbol(NamedTuple):
    name: str
    kind: int
    description: int

    @property
    def is_exported(self) -> bool:
        return bool(self.kind & IS_EXTERNAL) and self.kind & KIND != UNDEFINED

    @property
    def is_open(self) -> bool:
        return self.kind & KIND == UNDEFINED and self.description >> 8 in OPEN


def symbols(data: bytes) -> Iterator[Symbol]:
    """The symbols of a file, without those for debuggers.

    Raises:
        ValueError: if it is no library for Apple's processors.
    """
    magic, processor, _, kind, commands = struct.unpack_from("<5I", data)
    if (magic, processor) != (MAGIC, ARM64) or kind not in LIBRARIES:
        raise ValueError(
            f"no library for aarch64-macos: magic {magic:x}, processor {processor:x}, type {kind}"
        )
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == SYMBOL_TABLE:
            first, count, names, _ = struct.unpack_from("<4I", data, at + 8)
            for i in range(count):
                name, kind, _, description, _ = struct.unpack_from("<IBBHQ", data, first + 16 * i)
                start = names + name
                if not kind & IS_DEBUG:
                    yield Symbol(data[start : data.index(b"\0", start)].decode(), kind, description)
        at += size


def faults(data: bytes, module: str) -> list[str]:
    """What is wrong with the library of a module."""
    found = list(symbols(data))
    wrong = [
        f"{s.name} is in no library" for s in found if s.is_open and not s.name.startswith(("_Py", "__Py"))
    ]
    if f"_PyInit_{module}" not in {s.name for s in found if s.is_exported}:
        wrong.append(f"it has no _PyInit_{module}")
    return wrong


def main() -> int:
    file = pathlib.Path(sys.argv[1])
    wrong = faults(file.read_bytes(), file.name.partition(".")[0])
    print(*(wrong or [f"{file.name} is a Python module for aarch64-macos"]), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""zig as a compiler for macOS on Apple's processors: aarch64-macos.cmake names it.

Two things about the link of a Python module are Apple's alone. zig gets what comes closest to them:
- It links libraries, not bundles. Python loads either.
- It reads no list of the symbols that Python will have. It lets all unknown ones be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

TARGET = ("-target", "aarch64-macos")
INSTEAD = {"-bundle": "-shared"}
LIST_OF_SYMBOLS, ANY_SYMBOL = "-Wl,@", "-Wl,-undefined,dynamic_lookup"


def translated(options: Sequence[str]) -> list[str]:
    """The same options in zig's words."""
    return [ANY_SYMBOL if o.startswith(LIST_OF_SYMBOLS) else INSTEAD.get(o, o) for o in options]


if __name__ == "__main__":
    command = [sys.executable, "-m", "ziglang", "c++", *TARGET, *translated(sys.argv[1:])]
    os.execv(sys.executable, command)

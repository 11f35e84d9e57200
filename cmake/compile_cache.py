# SPDX-License-Identifier: Apache-2.0
"""A compiler launcher that keeps objects by the content of everything they were made from.

    python compile_cache.py FOLDER COMPILER ARGUMENT... -c SOURCE -o OBJECT

pip builds in an environment of its own every time: the headers of Python packages lie at another path in
each of them, and a build folder that is kept compiles everything anew. Here a path counts for nothing. An
object is found by the compiler's version, the arguments but for include folders and outputs, and the bytes of
the source and of every header that the preprocessor names. CMakeLists.txt calls it unless it is given another
launcher.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

FORMAT = b"1"  # of the keys; another number forgets all objects
KEPT_SECONDS = 30 * 24 * 3600  # since an object was last used
FOLDERS = (
    "-I",
    "-isystem",
    "-idirafter",
    "-iquote",
    "-ccbin",
)  # options whose value is a path of this machine
OUTPUTS = ("-o", "-MF", "-MT", "-MQ")
DEBUG = re.compile(r"-g[0-9]?$|-ggdb|-gdwarf|-fsanitize|-G$|-lineinfo")  # these write paths into the object


class Call(NamedTuple):
    """One compilation, as a build tool asks for it."""

    command: list[str]  # without outputs
    outputs: dict[str, str]  # option: path
    key: list[str]  # what of the command decides the object


def parse(arguments: Sequence[str]) -> Call | None:
    """The call, or None if it is not a plain compilation whose object may be kept."""
    command, key, outputs = [arguments[0]], [], {}
    rest = iter(arguments[1:])
    for argument in rest:
        if argument in OUTPUTS:
            outputs[argument] = next(rest, "")
            continue
        command.append(argument)
        if argument in FOLDERS:
            command.append(next(rest, ""))
        elif argument == "-c":
            command[-1:] = [next(rest, "")]
        elif argument not in ("-MD", "-MMD") and not argument.startswith(FOLDERS):
            key.append(argument)
    is_plain = "-c" in arguments and "-o" in outputs and not any(map(DEBUG.match, arguments))
    command = [argument for argument in command if argument not in ("-MD", "-MMD")]
    return Call(command, outputs, key) if is_plain else None


def dependencies(rule: str) -> list[str]:
    """The files of a rule for make, as compilers write it."""
    names = re.split(r"(?<!\\)\s+", rule.replace("\\\n", " ").split(":", 1)[1].strip())
    return [name.replace("\\ ", " ").replace("$$", "$") for name in names]


def key_of(call: Call, depended: Sequence[str]) -> str:
    version = subprocess.run([call.command[0], "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(b"\0".join([FORMAT, version, *map(os.fsencode, call.key)]))
    for content in sorted({hashlib.sha256(pathlib.Path(name).read_bytes()).digest() for name in depended}):
        digest.update(content)
    return digest.hexdigest()


def preprocess(call: Call) -> str | None:
    """The rule that names everything the object depends on; None if that cannot be told."""
    target = call.outputs.get("-MT") or call.outputs["-o"]
    command = [*call.command, "-M", "-MT", target]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout if result.returncode == 0 and ":" in result.stdout else None


def place(source: pathlib.Path, target: pathlib.Path) -> None:
    """A copy that appears whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part, source.open("rb") as file:
        shutil.copyfileobj(file, part)
    pathlib.Path(part.name).replace(target)


def forget_unused(folder: pathlib.Path) -> None:
    for file in folder.iterdir():
        if file.stat().st_mtime < time.time() - KEPT_SECONDS:
            file.unlink(missing_ok=True)


def is_same(call: Call, rule: str) -> bool:
    """Whether the compiler read no file that the preprocessor had not named."""
    written = call.outputs.get("-MF")
    if written is None or not pathlib.Path(written).is_file():
        return True
    known = set(map(os.path.realpath, dependencies(rule)))
    return known >= set(map(os.path.realpath, dependencies(pathlib.Path(written).read_text())))


def main(arguments: Sequence[str]) -> int:
    folder, command = pathlib.Path(arguments[0]), arguments[1:]
    call = parse(command)
    rule = preprocess(call) if call else None
    if call is None or rule is None:
        return subprocess.run(command).returncode
    folder.mkdir(parents=True, exist_ok=True)
    kept, target = folder / f"{key_of(call, dependencies(rule))}.o", pathlib.Path(call.outputs["-o"])
    if kept.exists():
        if "-MF" in call.outputs:
            pathlib.Path(call.outputs["-MF"]).write_text(rule)
        kept.touch()
        place(kept, target)
        return 0
    code = subprocess.run(command).returncode
    if code == 0 and is_same(call, rule):
        place(target, kept)
        forget_unused(folder)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

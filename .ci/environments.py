# SPDX-License-Identifier: Apache-2.0
"""The Pythons of a machine, their virtual environments, and the wheel of this checkout; by uv or by pip."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
UV = shutil.which("uv")
Run = Callable[..., None]  # runs a command, in the log of a step


def can_be_used(python: str | pathlib.Path, version: str) -> bool:
    """Whether it starts and can make environments: a version manager's shim may do neither."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    if UV:
        code = code.replace(", venv, ensurepip", "")
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return result.stdout.strip() == version


def find_pythons() -> dict[str, pathlib.Path]:
    """A Python for each version that there is.

    Raises:
        SystemExit: if there is none.
    """
    found = {}
    for version in VERSIONS:
        managed = sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        paths = [path for path in (shutil.which(f"python{version}"), *managed) if path]
        usable = [path for path in paths if can_be_used(path, version)]
        if usable:
            found[version] = pathlib.Path(usable[0])
    if not found:
        raise SystemExit("no Python from 3.11 on was found that can make virtual environments")
    return found


def requirements(extra: str) -> list[str]:
    """What the package needs with an extra, without the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = list(project["dependencies"])
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(r"jax-na\[(.*)\]", requirement)
        needed += [r for name in own[1].split(",") for r in requirements(name)] if own else [requirement]
    return list(dict.fromkeys(needed))


class Environment(NamedTuple):
    folder: pathlib.Path
    base: pathlib.Path  # the Python that it is made of
    version: str

    @property
    def bin(self) -> pathlib.Path:
        return self.folder / "bin"

    @property
    def python(self) -> pathlib.Path:
        return self.bin / "python"

    def create(self, run: Run, *packages: str) -> None:
        if UV:
            run(UV, "venv", "--clear", "--python", self.base, self.folder)
        else:
            run(self.base, "-m", "venv", "--clear", self.folder)
        if packages:
            self.install(run, *packages)

    def install(self, run: Run, *arguments: str) -> None:
        if UV:
            run(UV, "pip", "install", "--python", self.python, *arguments)
        else:
            run(self.python, "-m", "pip", "install", "-q", *arguments)

    def output(self, code: str) -> str:
        """What this code prints there."""
        command = [self.python, "-P", "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build_wheel(run: Run, python: pathlib.Path, folder: pathlib.Path, **variables: str) -> pathlib.Path:
    """The wheel of this checkout for one Python, made in a folder, with environment variables."""
    if UV:
        run(UV, "build", "--wheel", "--python", python, "--out-dir", folder, ROOT, variables=variables)
    else:
        builder = Environment(folder / "builder", python, "")
        builder.create(run)
        pip = (builder.python, "-m", "pip")
        run(*pip, "wheel", "-q", "--no-deps", "-w", folder, ROOT, variables=variables)
    run("ls", "-l", wheel_in(folder))
    return wheel_in(folder)


def wheel_in(folder: pathlib.Path) -> pathlib.Path:
    """The wheel that was made in a folder."""
    return next(folder.glob("*.whl"))

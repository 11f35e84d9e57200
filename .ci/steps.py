# SPDX-License-Identifier: Apache-2.0
"""Steps that need one another, side by side as far as there are cores, each with a log and a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

SETTINGS = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "UV_NO_PROGRESS": "1"}
SUMMARY = re.compile(r"^(=+ )?\d+ (passed|failed|skipped|error).* in [0-9.]+s.*$", re.MULTILINE)


@dataclasses.dataclass
class Step:
    """`action` gets a function that runs a command: run(program, argument, ..., variables={}, cwd=folder)."""

    name: str
    action: Callable[[Callable[..., None]], None]
    needs: tuple[str, ...] = ()
    all_cores: bool = False
    seconds: float = 0.0
    log: pathlib.Path = pathlib.Path()


class Failure(Exception):
    """A command ended with an error."""


class Plan:
    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = {step.name: step for step in steps}
        self.stopped = threading.Event()
        self.processes: set[subprocess.Popen[bytes]] = set()

    def chosen(self, names: Sequence[str]) -> dict[str, Step]:
        """The steps of these names and all that they need; all steps if no name is given.

        Raises:
            SystemExit: if a name is unknown.
        """
        unknown = set(names) - set(self.steps)
        if unknown:
            raise SystemExit(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(self.steps)}")
        wanted = list(names or self.steps)
        for name in wanted:
            wanted += [needed for needed in self.steps[name].needs if needed not in wanted]
        return {name: step for name, step in self.steps.items() if name in wanted}

    def run(self, names: Sequence[str], folder: pathlib.Path, cores: int) -> int:
        """Runs them in the order of the plan, as soon as what they need is done and cores are free."""
        waiting, done, start = self.chosen(names), dict[str, Step](), time.monotonic()
        running: dict[concurrent.futures.Future[None], Step] = {}
        failed: list[str] = []
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            while waiting or running:
                free = cores - sum(cores if step.all_cores else 1 for step in running.values())
                for step in self.ready(waiting, done, free, cores) if not failed else ():
                    step.log = folder / f"{step.name.replace(' ', '-').replace(',', '')}.log"
                    running[pool.submit(self.perform, step)] = waiting.pop(step.name)
                if not running:
                    break
                ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    step = running.pop(future)
                    done[step.name] = step
                    failed += self.report(step, future.exception(), stop=bool(failed))
        self.summarize(done.values(), time.monotonic() - start)
        print(f"\nfailed: {', '.join(failed)}" if failed else "\nall checks passed", flush=True)
        return bool(failed)

    def ready(self, waiting: dict[str, Step], done: dict[str, Step], free: int, cores: int) -> list[Step]:
        """The steps to begin now: the first that can, so that none waits for ever for all cores."""
        able = [step for step in waiting.values() if set(step.needs) <= set(done)]
        chosen: list[Step] = []
        for step in able:
            needed = cores if step.all_cores else 1
            if needed > free:
                break
            chosen.append(step)
            free -= needed
        return chosen

    def perform(self, step: Step) -> None:
        begin = time.monotonic()
        with step.log.open("wb") as log:

            def run(
                *command: Any, variables: dict[str, str] | None = None, cwd: pathlib.Path | None = None
            ) -> None:
                if self.stopped.is_set():
                    raise Failure("another step has failed")
                log.write(f"$ {' '.join(map(str, command))}\n".encode())
                log.flush()
                environment = {**os.environ, **SETTINGS, **(variables or {})}
                arguments = list(map(str, command))
                with subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, cwd=cwd) as process:
                    self.processes.add(process)
                self.processes.discard(process)
                if process.returncode != 0:
                    raise Failure(f"{command[0]} ended with {process.returncode}")

            try:
                step.action(run)
            finally:
                step.seconds = time.monotonic() - begin

    def report(self, step: Step, error: BaseException | None, stop: bool) -> list[str]:
        """Prints the log of a step; the first failure ends all others. Returns what has failed."""
        if error is not None and stop:
            return []
        print(f"\n== {step.name}: {step.seconds:.0f} s ==", flush=True)
        print(step.log.read_text(errors="replace").rstrip())
        if error is None:
            return []
        print(f"{step.name}: {error}", flush=True)
        self.stopped.set()
        for process in tuple(self.processes):
            process.terminate()
        return [step.name]

    def summarize(self, done: Sequence[Step], seconds: float) -> None:
        """Times of all steps, and how their tests ended."""
        print(f"\n== {seconds / 60:.1f} minutes ==")
        for step in done:
            print(f"{step.seconds:7.0f} s  {step.name}")
        print("\n== tests ==")
        for step in done:
            for match in SUMMARY.finditer(step.log.read_text(errors="replace")):
                print(f"{step.name}: {match[0]}")

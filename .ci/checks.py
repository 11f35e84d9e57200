# SPDX-License-Identifier: Apache-2.0
"""What .ci/run does: everything that must hold before a change lands.

Usage: .ci/run [--all-architectures] [--keep FOLDER] [STEP...]

Two wheels are built, one for Python 3.11 and one for all newer ones, and these two are tested everywhere.
CUDA kernels are compiled for compute capabilities 8.0 and 9.0, and for all if cuda/ or common/ changed since
the last tag; then their longest tests have all combinations too. .ci/release compiles for all. A step given
by name runs with those that it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

import cuda_kernels
import other_systems
import sanitizers
from environments import ROOT, Environment, build_wheel, find_pythons, requirements, wheel_in
from steps import Plan, Step

# JAX has no part in these: CUDA kernels on the host executor. They run once.
EXECUTOR = (
    "simt",
    "test_tile_schedule.py",
    *(f"test_cuda_{n}.py" for n in ("kernels", "naive", "gemm", "hopper")),
)
EXECUTOR += (
    "test_cuda_gemm_faults.py",
    "test_cuda_halo.py",
    "test_cuda_non_finite.py",
    "test_cuda_key_mask.py",
)
# Their combinations take up to a minute each: some of them are enough where no CUDA kernel has changed.
LONG = ("tests/test_cuda_key_mask.py", "tests/test_cuda_non_finite.py")
# What a set of instructions computes: these run with each of them.
NUMERICAL = ("test_attention.py", "test_unfused.py", "test_random.py", "test_regions.py", "test_package.py")
CLANG_SOURCES = ("cpu/isa/kernels.cc", "cpu/naive.cc", "cpu/host/instruction_set.cc", "cpu/host/handlers.cc")
CLANG_TARGETS = ("aarch64-linux-gnu", "x86_64-linux-gnu")
Pythons = dict[str, pathlib.Path]
PACKAGES_OF_TOOLS = ("ruff>=0.12", "clang-format>=18", *other_systems.LINKERS)


def git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def all_architectures() -> bool:
    """Whether what CUDA kernels are made of has changed since the last release."""
    tag = git("describe", "--tags", "--abbrev=0")
    return bool(tag and git("diff", "--name-only", tag, "--", "cuda", "common"))


def first_steps(tools: Environment, newest: Environment, oldest: Environment) -> list[Step]:
    """What needs one core, and no kernels."""
    oldest_jax = [*requirements("test"), "jax==0.10.*", "jaxlib==0.10.*"]
    sources = git("ls-files", "*.cc", "*.h", "*.cu", "*.cuh").split()
    return [
        Step("tools", lambda run: tools.create(run, *PACKAGES_OF_TOOLS)),
        Step("house rules", lambda run: run(sys.executable, ".ci/house.py")),
        Step("format", lambda run: run(tools.bin / "ruff", "format", "--check", "."), needs=("tools",)),
        Step("lint", lambda run: run(tools.bin / "ruff", "check", "."), needs=("tools",)),
        Step(
            "format of C++",
            lambda run: run(tools.bin / "clang-format", "--dry-run", "--Werror", *sources),
            needs=("tools",),
        ),
        Step("environment newest", lambda run: newest.create(run, *requirements("dev"))),
        Step("environment oldest", lambda run: oldest.create(run, *oldest_jax)),
        Step("types", lambda run: run(newest.bin / "mypy"), needs=("environment newest",)),
    ]


def clang(run, tools: Environment, newest: Environment, work: pathlib.Path) -> None:
    """Kernels compile with clang, for aarch64 and for x86-64."""
    headers = newest.output("import jax; print(jax.ffi.include_dir())")
    for target in CLANG_TARGETS:
        for source in CLANG_SOURCES:
            flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I.", "-isystem", headers]
            command = [tools.python, "-m", "ziglang", "c++", "-target", target, *flags]
            run(*command, "-c", source, "-o", work / f"{target}.o")


def pytest(run, environment: Environment, *arguments: str, **variables: str) -> None:
    workers = ("-n", "auto", "--dist", "worksteal")  # some tests take minutes
    run(environment.bin / "pytest", "-q", *workers, "--durations=10", *arguments, variables=variables)


def kept(work: pathlib.Path) -> dict[str, str]:
    """Objects of one build are used by the next."""
    return {"SKBUILD_CMAKE_DEFINE": f"JAX_NA_OBJECTS={work / 'objects'}"}


def steps_of_wheels(pythons: Pythons, work: pathlib.Path) -> tuple[list[Step], dict[str, str]]:
    """A wheel for Python 3.11, one for all newer, made by the oldest of them; and which is for whom."""
    steps, made, variables = [], {}, {"JAX_NA_CUDA": "OFF", **kept(work)}
    for version, python in pythons.items():
        name = "wheel for 3.11" if version == "3.11" else "wheel for 3.12 and newer"
        if name not in made.values():
            folder, before = work / name.replace(" ", "-"), tuple(s.name for s in steps)
            steps.append(
                Step(
                    name,
                    lambda run, python=python, folder=folder: build_wheel(run, python, folder, **variables),
                    needs=before,  # it finds most objects there
                    all_cores=not before,
                )
            )
        made[version] = name
    return steps, made


def test_steps(
    newest: Environment, oldest: Environment, wheels: dict[str, str], work: pathlib.Path, every: bool
) -> list[Step]:
    def wheel(environment: Environment) -> pathlib.Path:
        return wheel_in(work / wheels[environment.version].replace(" ", "-"))

    def install(run, environment: Environment) -> None:
        environment.install(run, "--no-deps", str(wheel(environment)))

    without_executor = [f"--ignore=tests/{name}" for name in EXECUTOR]
    files = [f"tests/{name}" for name in NUMERICAL]

    def all_combinations(run) -> None:
        variables = {"JAX_NA_WHEEL": str(wheel(newest))}
        later = [] if every else [f"--ignore={name}" for name in LONG]
        pytest(run, newest, "--exhaustive", *later, **variables)
        if not every:
            pytest(run, newest, *LONG, **variables)

    def other_levels(run) -> None:
        """The best one runs everything already, and the oldest JAX the baseline."""
        levels = newest.output("from jax_na import _cpu; print(*_cpu.isa_levels()[1:-1])").split()
        run("echo", "instruction sets between the baseline and the best:", *levels or ["none"])
        for level in levels:
            pytest(run, newest, *files, JAX_NA_ISA=level)

    at_newest, at_oldest = ("install newest",), ("install oldest",)
    return [
        Step(
            "install newest",
            lambda run: install(run, newest),
            needs=("environment newest", wheels[newest.version]),
        ),
        Step(
            "tests, all combinations, newest",
            all_combinations,
            needs=at_newest,
            all_cores=True,
        ),
        Step("tests, other instruction sets", other_levels, needs=at_newest, all_cores=True),
        Step(
            "install oldest",
            lambda run: install(run, oldest),
            needs=("environment oldest", wheels[oldest.version]),
        ),
        Step(
            "tests, oldest, baseline",
            lambda run: pytest(run, oldest, *without_executor, JAX_NA_ISA="baseline"),
            needs=at_oldest,
            all_cores=True,
        ),
        Step(
            "example photo",
            lambda run: run(
                newest.python,
                "examples/photo.py",
                "--output",
                work / "photo.png",
                variables={"MPLBACKEND": "Agg"},
            ),
            needs=at_newest,
        ),
        Step(
            "example training",
            lambda run: run(newest.python, "examples/sharded_training.py"),
            needs=at_newest,
        ),
    ]


def documentation(run, environment: Environment, wheel: pathlib.Path, work: pathlib.Path) -> None:
    """The site builds without a warning, its Python runs, and no link or picture in it is broken."""
    environment.create(run, *requirements("docs"))
    environment.install(run, "--no-deps", str(wheel))
    site = work / "site" / "html"
    run(environment.python, "-P", "-m", "sphinx", "-q", "-W", "-n", "--keep-going", ROOT / "docs", site)
    run(environment.python, ROOT / ".ci" / "site_links.py", site)


def smoke(run, environment: Environment, wheel: pathlib.Path) -> None:
    """The wheel, with no compiler, on another Python."""
    environment.create(run, "--only-binary", ":all:", str(wheel))
    run(environment.python, ROOT / ".ci" / "smoke.py", cwd=environment.folder)


def documentation_step(environment: Environment, wheels: dict[str, str], work: pathlib.Path) -> Step:
    name = wheels[environment.version]
    folder = work / name.replace(" ", "-")
    return Step(
        "documentation",
        lambda run: documentation(run, environment, wheel_in(folder), work),
        needs=(name,),
    )


def smoke_steps(pythons: Pythons, wheels: dict[str, str], work: pathlib.Path) -> list[Step]:
    def step(version: str, python: pathlib.Path) -> Step:
        name = wheels[version]
        environment = Environment(work / f"smoke-{version}", python, version)
        folder = work / name.replace(" ", "-")
        return Step(
            f"wheel on Python {version}",
            lambda run: smoke(run, environment, wheel_in(folder)),
            needs=(name,),
        )

    return [step(*item) for item in list(pythons.items())[1:-1]]


def plan(work: pathlib.Path, architectures: str) -> Plan:
    pythons = find_pythons()
    versions = list(pythons)
    environments = {
        name: Environment(work / name, pythons[version], version)
        for name, version in {
            **{"tools": versions[-1], "newest": versions[-1], "oldest": versions[0]},
            **{"sanitizers": versions[0], "cuda": versions[-1], "python-alone": versions[-1]},
            "documentation": versions[-1],
        }.items()
    }
    tools, newest, oldest = environments["tools"], environments["newest"], environments["oldest"]
    wheel_steps, wheels = steps_of_wheels(pythons, work)
    clang_needs = ("tools", "environment newest")
    steps = [
        *first_steps(tools, newest, oldest),
        Step("clang", lambda run: clang(run, tools, newest, work), needs=clang_needs),
        Step(
            "link for macOS",
            lambda run: other_systems.link_for_macos(run, tools, newest, work),
            needs=clang_needs,
        ),
        Step("Python alone", lambda run: other_systems.python_alone(run, environments["python-alone"])),
        *wheel_steps,
        *test_steps(newest, oldest, wheels, work, every=not architectures),
        documentation_step(environments["documentation"], wheels, work),
        *smoke_steps(pythons, wheels, work),
        Step(
            "sanitizers",
            lambda run: sanitizers.check(run, environments["sanitizers"]),
            all_cores=True,
        ),
        Step(
            "CUDA kernels",
            lambda run: cuda_kernels.check(run, environments["cuda"], architectures, **kept(work)),
            all_cores=True,
        ),
    ]
    return Plan(steps)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all-architectures", action="store_true", help="of CUDA kernels")
    parser.add_argument("--keep", metavar="FOLDER", help="work in this folder and leave it there")
    parser.add_argument("steps", nargs="*", metavar="STEP")
    options = parser.parse_args()
    every = options.all_architectures or all_architectures()
    with contextlib.ExitStack() as stack:
        work = pathlib.Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        work.mkdir(parents=True, exist_ok=True)
        return plan(work, "" if every else "80;90a").run(options.steps, work, os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Builds the CPU module with AddressSanitizer and UndefinedBehaviorSanitizer, and runs tests of it."""

from __future__ import annotations

import subprocess

from environments import Environment, Run, build_wheel, requirements

DEFINES = (
    "JAX_NA_SANITIZE=address,undefined",
    "JAX_NA_EMULATE_AVX512=ON",
    "JAX_NA_CUDA=OFF",
)
# libstdc++ must be loaded before the sanitizer's interceptor of __cxa_throw is used by jaxlib.
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")
FOREIGN_CALLS = ("tests/test_foreign_calls.py", "tests/test_foreign_fuzz.py")
TESTS = (("--exhaustive", *FOREIGN_CALLS), ("tests/test_random.py", "tests/test_regions.py"))


def library(name: str) -> str:
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def check(run: Run, environment: Environment) -> None:
    folder = environment.folder.with_name("sanitizers-wheel")  # the environment begins with an empty folder
    wheel = build_wheel(run, environment.base, folder, SKBUILD_CMAKE_DEFINE=";".join(DEFINES))
    environment.create(run, *requirements("test"))
    environment.install(run, "--no-deps", str(wheel))
    variables = {
        "LD_PRELOAD": " ".join(map(library, LIBRARIES)),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    options = ("-q", "-n", "auto", "-p", "no:cacheprovider", "--capture=sys")
    for tests in TESTS:
        run(environment.bin / "pytest", *options, *tests, variables=variables)

# SPDX-License-Identifier: Apache-2.0
"""The executor finds faults in the protocol of the forward kernel for Hopper GPUs, and else nothing."""

from __future__ import annotations

import ctypes
import functools
import re

import numpy as np
import pytest

from . import build

SEEDS = (1, 2, 3)
pytestmark = pytest.mark.skipif(build.host_compiler() is None, reason="no C++ compiler")

# fault -> kinds of the finding, which may depend on the order in which threads run
FAULTS = {
    "WrongFullPhase": "race|deadlock",
    "WrongEmptyPhase": "deadlock",
    "BufferNotEmpty": "race|mbarrier with too many arrivals",
    "MissingRelease": "deadlock",
    "EarlyRelease": "race",
    "TooFewReleases": "race|mbarrier with too many arrivals|deadlock",
    "MissingFullWait": "race",
    "MissingInitFence": "missing fence_mbarrier_init",
    "MissingPass": "deadlock|barrier with different counts|illegal barrier",
    "MissingTurn": "deadlock|barrier with different counts|illegal barrier",
}


def names() -> list[str]:
    text = (build.SIMT / "faulty" / "sm90_forward.cc").read_text()
    return re.findall(r"^  k(\w+),$", text, re.MULTILINE)


@functools.cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(
        str(build.host_library("faulty_fused", [(build.SIMT / "faulty" / "sm90_forward.cc", ())], []))
    )


def run(fault: str, seed: int, length: int = 700, kernel_size: int = 640) -> tuple[str, np.ndarray, float]:
    """The report, the log-sum-exp, and how far it is off: with keys of zero it is the log of their number."""
    tokens = np.zeros((4, length, 32), np.uint16)  # bfloat16
    lse = np.full(length, np.nan, np.float32)
    arrays = [np.zeros(2, np.int32), *tokens, lse]
    pointers = (ctypes.c_void_p * 6)(*(x.ctypes.data for x in arrays))
    report = ctypes.create_string_buffer(1 << 14)
    library().run(names().index(fault), seed, length, kernel_size, pointers, report, len(report))
    return report.value.decode(), lse, float(np.log(kernel_size))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernel_itself_gives_no_findings(seed):
    report, found, expected = run("None", seed)
    assert report == ""
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault, seed):
    report = run(fault, seed)[0]
    findings = [f for f in re.split(r"\n(?=\S)", report) if re.match(f"({FAULTS[fault]}): ", f)]
    assert any(re.search(r"\b(ring|forward|scores)\.cuh:", f) for f in findings), report  # files of cuda/sm90


def test_every_planted_fault_is_tested():
    assert names() == ["None", *FAULTS]

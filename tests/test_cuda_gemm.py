# SPDX-License-Identifier: Apache-2.0
"""The GEMM CUDA kernels against the oracle, on the host executor (on the GPU with JAX_NA_KERNELS=device).

The operands' unused slots and padding are NaN, results are poisoned: what is read or left out shows.
"""

import numpy as np
import pytest

from . import cuda_kernels, cuda_tilings, helpers
from .cases import NAMED, Case
from .cuda_kernels import NAN, NO_NAN, Kernel, Pass, any_seed
from .cuda_problems import UNMERGED, Problem, any_problem, dtype_of, lost_queries, outside, region
from .cuda_unfused import Unfused, gemm_kernels
from .test_cuda_kernels import LARGER, MODES, TF32, repeated
from .test_regions import CUTS, OUTSIDE, regions

pytestmark = pytest.mark.some(5)  # the rest is for --exhaustive: the executor is slow

KERNELS = (Kernel.GEMM_QK, Kernel.GEMM_AV, Kernel.GEMM_INVERSE)
ROWS = (16, 64)
PHASES = (  # windows of which shared memory holds a part, and features in slices
    Case("wide-1d", (700,), 600, head_dim=16),
    Case("wide-causal", (650,), 601, stride=4, is_causal=True, head_dim=8),
    Case("wide-2d", (40, 33), (35, 31), head_dim=8),
    Case("wide-2d-causal", (36, 30), (33, 29), stride=(3, 1), is_causal=(False, True), head_dim=8),
    Case("wide-3d", (9, 12, 13), (9, 11, 12), head_dim=8, is_causal=(True, False, True)),
    Case("head-dim-300", (40,), 9, head_dim=300, value_dim=270, heads=2, kv_heads=1),
    Case("head-dim-130-2d", (7, 9), (3, 5), head_dim=130, value_dim=136),
)
# A GPU truncates where it adds to an accumulator: of 3 n / 8 additions (three TF32 products, 8 numbers at a
# time) each loses half a unit in the last place on average, 3e-8 of the sum. n is up to 300 features in qk,
# and a thousand keys in the sums. The executor rounds.
EXACT = (1e-5, 2e-5) if cuda_kernels.ON_DEVICE else (1.5e-6, 1.5e-6)
# Relative errors of qk, which is float32, and of av and inverse, which have the type of the inputs.
TOLERANCE = {
    ("bfloat16", "default"): (1e-6, 4e-3),
    ("float16", "default"): (1e-6, 6e-4),
    ("float32", "default"): (2 * TF32, 2 * TF32),
    ("float32", "exact"): EXACT,
}


class Gemm(Unfused):
    def __init__(self, problem, mode, rows, rng):
        super().__init__(problem, mode[0], dtype_of(mode[0]), KERNELS, rng)
        self.mode, self.rows, self.rng = mode, rows, rng

    def how(self, kernel, problem):
        kernels = gemm_kernels(kernel, problem, self.mode, self.rows, self.rng)
        return {"kernels": kernels, "precision": self.mode[1]}

    def check(self):
        qk, sums = TOLERANCE[self.mode]
        super().check({"qk": qk, "av": sums, "inverse": sums}, self.how)


def runs():
    """All cases in bfloat16 with every kernel, and in the other modes with one of them."""
    for i, case in enumerate((*UNMERGED, *LARGER, *PHASES)):
        for j, mode in enumerate(MODES):
            for rows in ROWS if mode[0] == "bfloat16" else ROWS[(i + j) % 2 :][:1]:
                yield pytest.param(case, mode, rows, id=f"{case}-{mode[0]}-{mode[1]}-{rows}")


@pytest.mark.parametrize(("case", "mode", "rows"), list(runs()))
def test_gemm(case, mode, rows, rng):
    Gemm(repeated(Problem.of(case)), mode, rows, rng).check()


@pytest.mark.parametrize("mode", [("float16", "default"), ("float32", "exact")], ids="-".join)
@pytest.mark.parametrize("name", CUTS)
def test_regions(name, mode, rng):
    for i, (queries, keys) in enumerate(regions(NAMED[name], CUTS[name])):
        problem = Problem.of(NAMED[name], region(NAMED[name], queries, keys))
        Gemm(repeated(problem), mode, ROWS[i % 2], rng).check()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_nan(reason, rows, rng):
    gemm = Gemm(outside(OUTSIDE[reason]), ("bfloat16", "default"), rows, rng)
    found = gemm.run(NO_NAN, gemm.padded(gemm.weights, 0), gemm.how)
    lost = lost_queries(gemm.problem)
    assert np.isnan(found["qk"][:, lost]).all()
    assert np.isnan(found["av"][:, lost].astype(np.float32)).all()


def test_phases():
    """These cases are what their list says: some boxes leave room for a part of a row only."""
    for case in PHASES[:5]:
        problem = Problem.of(case)
        legal = cuda_tilings.tilings(Kernel.GEMM_QK, Pass.QK, problem, MODES[0])
        found = {tiling.staged_slots for tiling in legal if tiling.rows == 64}
        assert any(0 < slots < problem.pitch for slots in found), case


@pytest.mark.some(2)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("name", ["all-2d", "wide-1d", "head-dim-12"])
def test_deterministic(name, mode, rng):
    """The order in which warps and blocks run leaves no trace: the same bits."""
    case = {c.name: c for c in (*UNMERGED, *LARGER, *PHASES)}[name]
    gemm = Gemm(Problem.of(case), mode, ROWS[any_seed(rng) % 2], rng)
    given = gemm.padded(gemm.weights, np.nan)
    kernels = {}

    def same_kernels(kernel, problem):
        return {**kernels.setdefault(kernel, gemm.how(kernel, problem)), "seed": any_seed(rng)}

    helpers.assert_identical(gemm.run(NAN, given, same_kernels), gemm.run(NAN, given, same_kernels))


@pytest.mark.some(2)
@pytest.mark.parametrize("number", range(48))
def test_random_problems(number, rng):
    modes = [mode for mode in MODES if cuda_kernels.is_built(mode)]
    problem, mode = any_problem(rng), modes[number % len(modes)]
    print(problem, mode)
    Gemm(repeated(problem), mode, ROWS[number // len(MODES) % 2], rng).check()


@pytest.mark.parametrize("tiles", [((3,), (64,)), ((32,), (64,)), ((64,), (32,)), ((16,), (64,))])
@pytest.mark.parametrize("kernel", KERNELS)
def test_illegal_tiles_are_refused(kernel, tiles, rng):
    gemm = Gemm(Problem.of(NAMED["plain-1d"]), ("bfloat16", "default"), 16, rng)
    chosen = cuda_tilings.choice("portable", *(tiles[::-1] if kernel is Kernel.GEMM_INVERSE else tiles))

    def how(which, problem):
        return {"kernels": chosen} if which is kernel else gemm.how(which, problem)

    with pytest.raises(AssertionError, match=r"refused: no kernel can run .* it takes"):
        gemm.run(NAN, gemm.padded(gemm.weights, 0), how)


def test_a_pitch_of_broken_pieces_is_refused(monkeypatch, rng):
    gemm = Gemm(Problem.of(NAMED["plain-1d"]), ("bfloat16", "default"), 16, rng)
    how = gemm.how(Kernel.GEMM_AV, gemm.problem)
    monkeypatch.setattr(Problem, "pitch", gemm.problem.geometry.window)
    operands = {"weights": gemm.weights, "y": gemm.inputs["value"]}
    results = {"x": cuda_kernels.poisoned(gemm.dout.shape, gemm.dout.dtype)}
    with pytest.raises(AssertionError, match="16 bytes"):
        cuda_kernels.run(Kernel.GEMM_AV, gemm.problem, "bfloat16", operands, results, **how)

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that only a GPU can tell, in one command: does it build, is it right, is it clean, how fast is it.
#
#   benchmarks/gpu.sh [OPTION...] [PHASE...]          all phases in this order, or those named
#
#   build        the package, for the GPU of this machine, into a folder of its own; the system stays as it is
#   conformance  the instruction wrappers on the GPU against what the host executor takes them to do
#   test         the kernels on the GPU against the oracle, then the tests of the package with JAX on the GPU
#   sanitize     compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over kernels on small problems
#   bench        benchmarks/run.py --platform gpu: the kernels and the peers that are installed
#
#   --output FOLDER   logs and results; default $OUT, else ./gpu-results
#   --work FOLDER     what is built, kept for the next run; default ${TMPDIR:-/tmp}/jax-na-gpu
#   --all-tests       every test, instead of the part that tells something new on a GPU
#   --bench "ARGS"    other arguments for benchmarks/run.py
#   --workers N       test processes; default 8 or the number of cores, whichever is less
#
# Needs no network: Python, jax with CUDA, nvcc, scikit-build-core, nanobind, cmake, ninja, pytest, hypothesis and
# execnet (which pytest-xdist brings).
set -euo pipefail

script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
root=$(dirname "$(dirname "$script")")
python=${PYTHON:-python3}
output=${OUT:-gpu-results}
work=${TMPDIR:-/tmp}/jax-na-gpu
all_tests=no bench_arguments= inside= phases=()
cores=$(nproc)
workers=$((cores < 8 ? cores : 8))

# Seconds after which a phase is ended.
limit() {
  case $1 in
    build) echo 420 ;;
    conformance) echo 90 ;;
    test) [ "$all_tests" = yes ] && echo 3000 || echo 300 ;;
    sanitize) echo 240 ;;
    bench) echo 420 ;;
  esac
}

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --output) output=$2 && shift ;;
    --work) work=$2 && shift ;;
    --bench) bench_arguments=$2 && shift ;;
    --workers) workers=$2 && shift ;;
    --all-tests) all_tests=yes ;;
    --inside) inside=$2 && shift ;; # runs one phase without its time limit and log
    -h | --help) sed -n '3,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$script" && exit 0 ;;
    build | conformance | test | sanitize | bench) phases+=("$1") ;;
    *) fail "unknown argument $1; see --help" ;;
  esac
  shift
done
[ ${#phases[@]} -gt 0 ] || phases=(build conformance test sanitize bench)

mkdir -p "$output" "$work"
output=$(cd "$output" && pwd)
work=$(cd "$work" && pwd)
site=$work/site

# The package is found there; nothing of it is installed into the system.
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Several processes share the GPU, and programs compiled once are kept.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=$work/programs JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_NA_TUNING=off

compute_capability() { nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. '; }

phase_build() {
  command -v nvcc >/dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  command -v nvcc >/dev/null || fail "there is no nvcc"
  local capability
  capability=$(compute_capability)
  [ -n "$capability" ] || fail "nvidia-smi shows no GPU"
  [ "$capability" != 90 ] || capability=90a # Hopper's own instructions
  nvcc --version | tail -n 2
  rm -rf "$site"
  CMAKE_BUILD_PARALLEL_LEVEL=$cores SKBUILD_CMAKE_DEFINE="JAX_NA_CUDA=ON;JAX_NA_CUDA_ARCHITECTURES=$capability-real" \
    "$python" -m pip install --no-build-isolation --no-deps --no-index --target "$site" -C build-dir="$work/build" -v "$root"
  cd "$work"
  "$python" -c '
import jax, jax_na
print(jax.devices(), jax_na.__file__)
for row in jax_na.implementations():
    print(row)
names = {row.name for row in jax_na.implementations() if row.available}
missing = {"fused", "gemm", "naive", "xla"} - names
raise SystemExit(f"not available on this GPU: {missing}" if missing else 0)'
  # The kernels once more, without JAX: what the tests of single kernels and compute-sanitizer run.
  JAX_NA_KERNELS=device JAX_PLATFORMS=cpu PYTHONPATH=$PYTHONPATH:$root "$python" -c '
from tests import cuda_kernels
print(cuda_kernels.library())'
}

phase_conformance() {
  cd "$root"
  "$python" tests/simt/conformance.py
}

# The kernels by themselves, without JAX: the same tests as on the host executor.
kernel_tests() {
  cd "$root"
  JAX_NA_KERNELS=device JAX_PLATFORMS=cpu "$@" -q -p no:cacheprovider -p no:benchmark \
    tests/test_cuda_kernels.py tests/test_cuda_halo.py tests/test_cuda_hopper.py tests/test_cuda_gemm.py tests/test_cuda_naive.py
}

# -P: the installed package is tested, not the source tree.
phase_test() {
  local status=0 chosen=(tests)
  kernel_tests "$python" -P -m pytest -n "$workers" --durations=5 || status=1
  cd "$root"
  "$python" -P -m pytest -q -p no:cacheprovider -p no:benchmark tests/test_gpu.py || status=1
  if [ "$all_tests" = no ]; then
    chosen=(tests/test_attention.py tests/test_unfused.py tests/test_regions.py tests/test_random.py)
  fi
  # Choosing the fastest matrix product for every shape costs more than running it.
  XLA_FLAGS="--xla_gpu_autotune_level=0 ${XLA_FLAGS:-}" XLA_PYTHON_CLIENT_MEM_FRACTION=.10 \
    "$python" -P -m pytest -q -n "$workers" -p no:cacheprovider -p no:benchmark --durations=10 "${chosen[@]}" || status=1
  return "$status"
}

phase_sanitize() {
  command -v compute-sanitizer >/dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  command -v compute-sanitizer >/dev/null || fail "there is no compute-sanitizer"
  local tool status=0
  for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    kernel_tests compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -P -m pytest -x -k "$(sanitized)" || status=1
  done
  return "$status"
}

# A few small problems that together reach every kernel.
sanitized() {
  echo "test_attention and (all-2d or boxes-3d or head-dim-12 or grouped-heads or head-dim-256 or stages or batch-3d or dilated-3d" \
    "or nat or parts or whole-128 or sequence-128 or video or rpb-many-tiles or rpb-large-table)" \
    "or test_gemm and (all-2d or wide-1d or wide-2d-causal or grouped-heads or head-dim-130)" \
    "or test_regions and mixed-2d or test_naive and all-3d and not float64 or test_windows_outside and overflow"
}

phase_bench() {
  cd "$root"
  # shellcheck disable=SC2086
  "$python" benchmarks/run.py --platform gpu --output "$output/gpu.json" --table "$output/gpu.txt" --log "$output/workers.log" \
    $bench_arguments
}

if [ -n "$inside" ]; then
  "phase_$inside"
  exit
fi

run_phase() {
  local name=$1 start=$SECONDS status=0
  echo "== $name"
  timeout --kill-after=15 "$(limit "$name")" bash "$script" --output "$output" --work "$work" --bench "$bench_arguments" \
    --workers "$workers" $([ "$all_tests" = no ] || echo --all-tests) --inside "$name" >"$output/$name.log" 2>&1 || status=$?
  local seconds=$((SECONDS - start))
  if [ "$status" -eq 0 ]; then
    tail -n "${tail_lines[$name]:-3}" "$output/$name.log"
    echo "== $name: passed in $seconds s"
    return 0
  fi
  tail -n 60 "$output/$name.log"
  [ "$status" -ne 124 ] && [ "$status" -ne 137 ] || echo "(it ran into its limit of $(limit "$name") s)"
  echo "== $name: FAILED with $status after $seconds s; all of it is in $output/$name.log"
  return 1
}

declare -A tail_lines=([conformance]=30 [bench]=80)
failed=()
for phase in "${phases[@]}"; do
  if ! run_phase "$phase"; then
    failed+=("$phase")
  fi
done
echo "== done in $SECONDS s; logs and results in $output"
[ ${#failed[@]} -eq 0 ] || { echo "gpu.sh: failed: ${failed[*]}"; exit 1; }

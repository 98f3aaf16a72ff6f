#!/usr/bin/env bash
# What a machine with a GPU is asked, in at most nine minutes: the tests that need one, and rows of
# the benchmarks. For a machine without a network, with PyTorch, pytest and pytest-benchmark.
#
#     OUT=results bash scripts/gpu_check.sh
#
# from the root of the tree, with fastlatent installed, or with its wheel and those of what it needs
# in .whl. $OUT gets the log, the results of the tests as JUnit XML, and gpu.json for benchmarks/results.
# PLAN=1 prints what would run and runs nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

END=525 # seconds; what is killed then has until 540
OUT=$(mkdir -p "${OUT:-gpu-results}" && cd "${OUT:-gpu-results}" && pwd)
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$OUT.cache/triton} FASTLATENT_CACHE=${FASTLATENT_CACHE:-$OUT.cache/fastlatent}
TESTS="tests/test_ops.py tests/test_roots.py tests/test_data.py tests/test_image_features.py"
CONTRACT="(test_values or test_gradients or test_surrogate) and cuda"
# In the order of what they tell; the last ones fall to a slow machine first.
ROWS="benchmarks/bench_logistic.py benchmarks/bench_roots.py benchmarks/bench_lvae.py benchmarks/bench_step.py
benchmarks/bench_bits.py benchmarks/bench_activation.py benchmarks/bench_spline.py benchmarks/bench_jacobian.py"
LEFT_OUT="not compile and not bandwidth and not scipy and not eigvals and not original and not 1568"

# phase NAME SECONDS COMMAND...: no phase outlasts its own seconds or those that are left.
phase() {
  local name=$1 limit=$(($2 < END - SECONDS ? $2 : END - SECONDS))
  shift 2
  if [[ -n ${PLAN-} ]]; then
    echo "$limit s: $name"
    printf ' %q' "$@"
    echo
    return
  fi
  echo "=== $name at $SECONDS s"
  if ((limit <= 0)); then
    echo "--- $name: no time left"
    failed+=("$name")
    return 1
  fi
  # An interrupt, for pytest to write what it has.
  timeout -s INT -k 10 "$limit" "$@"
  local code=$?
  ((code == 0)) || failed+=("$name ($code)")
  echo "--- $name: code $code"
  return $code
}

failed=()
[[ -n ${PLAN-} ]] || exec > >(tee "$OUT/log") 2>&1
spread=()
"$python" -c "import xdist" 2>/dev/null && spread=(-n 8)

phase machine 15 nvidia-smi
if compgen -G ".whl/*.whl" >/dev/null; then
  # Beside what is installed, and before the tree: that holds no compiled core.
  site=$OUT.cache/site
  phase install 45 "$python" -m pip install -q --no-index --no-deps --upgrade --target "$site" .whl/*.whl
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
fi
phase doctor 40 "$python" -m fastlatent.doctor
phase contract 140 "$python" -m pytest -q "${spread[@]}" -p no:cacheprovider --tb=line -k "$CONTRACT" \
  --junitxml="$OUT/contract.xml" tests/test_ops.py
contract=$?
trusted=()
# What was interrupted tells of some tests only; the benchmarks ask again then.
((contract > 1)) || trusted=(--contract "$OUT/contract.xml")
# shellcheck disable=SC2086
phase rows 235 "$python" -m pytest -q -p no:cacheprovider --tb=line --device cuda "${trusted[@]}" \
  -k "$LEFT_OUT" --benchmark-json="$OUT/gpu.json" $ROWS
# shellcheck disable=SC2086
phase tests 120 "$python" -m pytest -q "${spread[@]}" -p no:cacheprovider --tb=line \
  -m "gpu and not large and not slow" -k "not ($CONTRACT) and not compile" --junitxml="$OUT/tests.xml" $TESTS

[[ -z ${PLAN-} ]] || exit 0
echo "=== $SECONDS s in all"
((${#failed[@]} == 0)) || printf 'FAILED: %s\n' "${failed[@]}"
exit $((${#failed[@]} > 0))

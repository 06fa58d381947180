#!/usr/bin/env bash
# Build, test, check and measure the GPU kernels: benchmarks/gpu.sh FOLDER [--dry]
# At most 8 minutes on a machine with torch, triton, nvcc and pybind11, and no network. Everything it finds goes to
# FOLDER. --dry takes the same steps without a GPU: Triton's interpreter, the CUDA sources on the CPU, tiny sizes.
set -uo pipefail
out="$(mkdir -p "${1:?usage: benchmarks/gpu.sh FOLDER [--dry]}" && cd "$1" && pwd)"
dry="${2:-}"
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# PYTHONSAFEPATH: the packages of this build, not those of the checkout.
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1
failed=0
budget=470
[ "$dry" != "--dry" ] || budget=1800

step() { # step NAME SECONDS COMMAND...: never stops the script, always leaves a log
    local name="$1" limit="$2" start=$SECONDS code=0
    local left=$((budget - SECONDS))
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "$name: not run, the $budget s are up"
        failed=1
        return
    fi
    [ "$limit" -le "$left" ] || limit="$left"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    echo "$name: exit $code, $((SECONDS - start)) s"
    tail -n 3 "$out/$name.log" | sed 's/^/    /'
    [ "$code" -eq 0 ] || failed=1
}

# A copy of the packages beside the built parts, so that nothing is installed and nothing in the checkout changes.
site="$work/site"
build() {
    LAYERCOLLAPSE_CUDA="$1" "$python" setup.py --quiet build --build-base "$work/build" --build-lib "$site"
}
export -f build
export python work site
if [ "$dry" = "--dry" ]; then
    step build 240 bash -c 'build 0 && g++ -std=c++20 -O2 -shared -fPIC -U_FORTIFY_SOURCE -I tests/cuda -x c++ csrc/cuda/*.cu -o "$work/emulated.so"'
    export TRITON_INTERPRET=1 LAYERCOLLAPSE_CUDA_EMULATED="$work/emulated.so"
else
    nvidia-smi >"$out/nvidia-smi.log" 2>&1
    step build 150 bash -c 'build 1'
fi
export PYTHONPATH="$site"
"$python" -c 'from layercollapse import ops; [print(f"{k}: {v.detail}") for k, v in ops.backends().items()]' | tee "$out/backends.log"

# The kernels' own tests first: if time runs out, these have run.
if [ "$dry" = "--dry" ]; then
    step tests-gpu 400 "$python" -m pytest tests/test_gpu.py -q -x -p no:cacheprovider
    step benchmark 300 "$python" benchmarks/gpu.py --out "$out" --dry
else
    step tests-gpu 170 "$python" -m pytest tests/test_gpu.py -q -p no:cacheprovider
    step benchmark 180 "$python" benchmarks/gpu.py --out "$out" --seconds 130
    sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)"
    for tool in memcheck racecheck; do
        # Backend cuda only: what compute-sanitizer slows most is Triton's compilation, in the same process.
        step "sanitizer-$tool" 45 "${sanitizer:-compute-sanitizer}" --tool "$tool" --error-exitcode 9 \
            "$python" -m pytest tests/test_gpu.py -q -x -p no:cacheprovider -k "cuda and (by_hand or many_tensors) and not dtype2"
    done
    step tests 100 "$python" -m pytest tests -q -x -p no:cacheprovider --ignore tests/test_gpu.py --ignore tests/test_gpu_on_cpu.py
fi
exit "$failed"

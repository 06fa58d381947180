#!/usr/bin/env bash
# Build, test, check and measure the GPU kernels: benchmarks/gpu.sh FOLDER [--dry]
#
# At most 9 minutes on a bare machine with torch, triton, nvcc and pybind11, and no network; what it lacks besides
# (pytest, xdist, hypothesis, compute-sanitizer, ncu, matplotlib) is said and done without. FOLDER gets at most six files:
# gpu.log, gpu.json, gpu.txt, gpu.png, sanitizer.log and profile.csv. Every step is a process of its own under a time limit, so
# that a fault of the device that a process keeps, or one that hangs, takes no other step with it.
# --dry takes the same steps without a GPU: Triton's interpreter, the CUDA sources on the CPU, tiny sizes.
set -uo pipefail

failed=0
budget=530
# What a GPU is tested with, and tests/kernels/test_gpu_on_cpu.py without one.
files="tests/kernels/test_gpu.py tests/ops/test_ops.py tests/ops/test_library.py tests/ops/test_checks.py tests/ops/test_sign_lists.py tests/ops/test_apply_mask.py tests/ops/test_repeats.py tests/ops/test_topk_stages.py tests/ops/test_sign_hashes.py tests/ops/test_patterns.py tests/entropy/test_probe.py tests/prune/test_masks.py tests/prune/test_pruner.py tests/compiler/driver/test_api.py"

# say TEXT...: to the log and to the screen.
say() { echo "$*" | tee -a "$out/gpu.log"; }

# start NAME SECONDS COMMAND...: in the background, with at most SECONDS of what is left; await NAME is its end.
start() {
    local name="$1" limit="$2" left=$((budget - SECONDS))
    shift 2
    [ "$limit" -le "$left" ] || limit="$left"
    : >"$work/$name.log"
    began[$name]="$SECONDS"
    timeout -k 5 "$limit" "$@" >>"$work/$name.log" 2>&1 &
    started[$name]="$!"
}
declare -A started began

await() {
    local name="$1" code=0
    wait "${started[$name]}" || code=$?
    unset "started[$name]"
    copy "$name"
    report "$name" "$code" $((SECONDS - began[$name]))
}

# step NAME SECONDS COMMAND...: in the foreground; what it says is in the log as it comes. Never stops the script.
step() {
    local name="$1"
    if [ $((budget - SECONDS)) -lt 10 ]; then
        say "$name: not run, the $budget s are up"
        failed=1
        return
    fi
    start "$@"
    tail -n +1 -s 0.2 -f --pid="${started[$name]}" "$work/$name.log" | sed -u "1i === $name" >>"$out/gpu.log" &
    local copier=$! code=0
    wait "${started[$name]}" || code=$?
    unset "started[$name]"
    wait "$copier"
    report "$name" "$code" $((SECONDS - began[$name]))
}

copy() { { echo "=== $1" && cat "$work/$1.log"; } >>"$out/gpu.log"; }

report() { # report NAME CODE SECONDS
    say "$1: $(case "$2" in 0) echo ok ;; 124 | 137) echo "FAILED, stopped at its limit" ;; *) echo "FAILED, exit $2" ;; esac), $3 s"
    grep -v '^ *$' "$work/$1.log" | tail -n 3 | cut -c 1-200 | sed 's/^/    /'
    [ "$2" -eq 0 ] || failed=1
}

finish() { # also of a script that is told to stop: nothing goes on, and what ran beside is in the log
    local name
    for name in "${!started[@]}"; do
        kill "${started[$name]}" 2>/dev/null
        copy "$name"
    done
    rm -rf "$work"
}

has() { "$python" -c "import $1" 2>/dev/null; }

# A copy of the packages beside the built parts, so that nothing is installed and nothing in the checkout changes.
# Without pyproject.toml, whose metadata an environment's own setuptools may be too old for.
build() { # build core|cuda
    local source="$work/source-$1"
    mkdir -p "$source" && ln -s "$PWD"/{setup.py,csrc,kernels,layercollapse} "$source" && cd "$source" &&
        LAYERCOLLAPSE_CUDA=$([ "$1" = cuda ] && echo 1 || echo 0) "$python" - "$1" --quiet build \
            --build-base "$work/build-$1" --build-lib "$work/$1" <<'PYTHON'
import sys

import setuptools

setup, part = setuptools.setup, sys.argv.pop(1)


def of_one_part(*, ext_modules, **settings):
    setup(ext_modules=[ext for ext in ext_modules if ext.name.endswith("_cuda") == (part == "cuda")], **settings)


setuptools.setup, sys.argv[0] = of_one_part, "setup.py"
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__name__": "__main__", "__file__": "setup.py"})
PYTHON
}

emulate() { g++ -std=c++20 -O2 -shared -fPIC -U_FORTIFY_SOURCE -I tests/cuda -x c++ csrc/cuda/*.cu -o "$work/emulated.so"; }

# The C functions on their own, without torch: for a GPU linked with the library of the build, else with the emulation
# and a sanitizer of the host, which finds what memcheck would.
driver() {
    if [ "$1" = "--dry" ]; then
        g++ -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -U_FORTIFY_SOURCE -I tests/cuda \
            -x c++ csrc/tests/cuda_driver.cu csrc/cuda/*.cu -o "$work/driver"
    else
        local library="$(ls "$work"/cuda/layercollapse_core/_cuda*)"
        "$(find_nvcc)" -std=c++17 -O1 -arch=native csrc/tests/cuda_driver.cu "$library" \
            -Xlinker -rpath -Xlinker "$(dirname "$library")" -o "$work/driver"
    fi
}
find_nvcc() { { type -P nvcc || ls "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; } | head -n 1; }

# sanitized TOOL: the driver under a tool of compute-sanitizer, with what it said in a file of its own.
sanitized() {
    local tool
    tool="$(type -P compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1)"
    if [ -z "$tool" ]; then
        echo "no compute-sanitizer on this machine: nothing checked"
        return
    fi
    echo "=== $1" >>"$out/sanitizer.log"
    "$tool" --tool "$1" --error-exitcode 9 "$work/driver" 3 2>&1 | tee -a "$out/sanitizer.log"
    return "${PIPESTATUS[0]}"
}

# What the hardware counts in each kernel, with sections rather than metrics: ncu stops at a name that it does not know.
profiled() {
    local ncu sections=()
    ncu="$(type -P ncu || ls /usr/local/cuda*/bin/ncu /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -n 1)"
    if [ -z "$ncu" ]; then
        echo "no ncu on this machine: nothing profiled"
        return
    fi
    for section in SpeedOfLight MemoryWorkloadAnalysis SchedulerStats WarpStateStats LaunchStats Occupancy; do
        sections+=(--section "$section")
    done
    "$ncu" --profile-from-start off --clock-control none --nvtx "${sections[@]}" --csv --page raw \
        "$python" benchmarks/gpu_profile.py >"$out/profile.csv"
    local code=$?
    "$python" benchmarks/gpu_profile.py --table "$out/profile.csv"
    return "$code"
}

native() { NVCC_APPEND_FLAGS=-lineinfo TORCH_CUDA_ARCH_LIST=native build cuda; }

tests() { # tests BACKEND [pytest's arguments]: the modules of the build, not of the checkout, in xdist's workers too
    local backend="$1"
    shift
    # Where it cannot run, pytest would skip all of it and be content.
    "$python" -P -c 'import sys; from layercollapse import ops; status = ops.backends()[sys.argv[1]]; sys.exit(not status.available and status.detail)' \
        "${backend%% *}" || return
    PYTHONSAFEPATH=1 "$python" -m pytest $files -q -p no:cacheprovider -k "$backend" "$@"
}

main() {
    out="$(mkdir -p "${1:?usage: benchmarks/gpu.sh FOLDER [--dry]}" && cd "$1" && pwd)"
    local dry="${2:-}"
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    python="${PYTHON:-python3}"
    work="$(mktemp -d)"
    trap finish EXIT
    trap 'exit 143' TERM INT
    export python work out files PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR="$work/triton"
    export -f build emulate native tests driver find_nvcc sanitized profiled
    local interpreted=() emulated=() mode=() seconds=1 workers=12 device=cuda
    if [ "$dry" = "--dry" ]; then
        budget=1800
        interpreted=(env TRITON_INTERPRET=1) emulated=(env "LAYERCOLLAPSE_CUDA_EMULATED=$work/emulated.so")
        mode=(--dry) seconds=4 workers=2 device=cpu # times as long
    else
        nvidia-smi >>"$out/gpu.log" 2>&1
    fi
    "$python" -c 'import sys, torch, triton; print("Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)' | tee -a "$out/gpu.log"
    local parallel=() fewer=()
    if has xdist; then parallel=(-n "$workers" --dist worksteal) fewer=(-n $((workers / 3 + 1)) --dist worksteal); else say "no pytest-xdist: Triton's tests in one process"; fi
    if ! has hypothesis; then
        say "no hypothesis: the tests of random cases are skipped"
        export PYTHONPATH="$PWD/tests/without_hypothesis"
    fi

    # The core in the foreground and the CUDA library beside it; then Triton's tests, which compile on many cores, while
    # the CUDA library is built, tested and checked on few. Nothing else runs while something is timed.
    start build-cuda $((120 * seconds)) bash -c "$([ "$dry" = "--dry" ] && echo emulate || echo native)"
    step build-core $((120 * seconds)) bash -c 'build core'
    cp -r layercollapse/report/templates "$work/core/layercollapse/report/" # pyproject.toml names them
    export PYTHONPATH="$work/core${PYTHONPATH:+:$PYTHONPATH}"
    has pytest || say "no pytest: no tests"
    ! has pytest || start tests-triton $((200 * seconds)) "${interpreted[@]}" bash -c 'tests "triton or faster" "$@"' - "${parallel[@]}"
    await build-cuda
    [ "$dry" = "--dry" ] || cp "$work"/cuda/layercollapse_core/_cuda* "$work/core/layercollapse_core/"
    "${emulated[@]}" "$python" -P -c 'from layercollapse import ops; [print(f"{k}: {v.detail}") for k, v in ops.backends().items()]' 2>&1 | tee -a "$out/gpu.log"
    ! has pytest || step tests-cuda $((90 * seconds)) "${emulated[@]}" bash -c 'tests cuda "$@"' - "${fewer[@]}"
    # A whole job of a user, for its result: its latencies are not to be read, other things run beside it.
    start job $((90 * seconds)) "$python" -P -m layercollapse run --data digits --device "$device" --out "$work/job"
    step driver $((60 * seconds)) bash -c "driver ${dry:-native} && ASAN_OPTIONS=detect_stack_use_after_return=0 \"\$work/driver\" $([ "$dry" = "--dry" ] && echo 5 || echo 20)"
    if [ "$dry" != "--dry" ]; then
        for tool in memcheck racecheck; do step "$tool" 40 bash -c "sanitized $tool"; done
    fi
    await job
    ! has pytest || await tests-triton

    step benchmark-cuda $((160 * seconds)) "${emulated[@]}" "$python" benchmarks/gpu.py --out "$out" --backend cuda --peers --seconds $((140 * seconds)) "${mode[@]}"
    step benchmark-triton $((100 * seconds)) "${interpreted[@]}" "$python" benchmarks/gpu.py --out "$out" --backend triton --seconds $((70 * seconds)) "${mode[@]}"
    [ "$dry" = "--dry" ] || step profile 70 bash -c profiled
    say "$(grep -c . "$out/gpu.txt" 2>/dev/null || echo 0) lines in gpu.txt, $SECONDS s in all"
    grep '^GOAL\|^FAILED\|^not measured' "$out/gpu.txt" | cut -c 1-300
    exit "$failed"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"

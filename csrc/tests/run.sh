#!/usr/bin/env bash
# Build the core's own tests under a sanitizer and run them: csrc/tests/run.sh [address|thread] [cases]
# ThreadSanitizer cannot see the locks inside libgomp and would report every handover, so that build uses std::thread
# for the same parallel_for. (Its calls also brought out a bug of GCC 12: kernels.inl, bits_of.)
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-address}" in
  address) flags=(-fsanitize=address,undefined -fno-sanitize-recover=all -fopenmp) ;;
  thread) flags=(-fsanitize=thread -DLC_STD_THREADS -pthread) ;;
  *) echo "expected address or thread, got $1" >&2; exit 2 ;;
esac
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
"${CXX:-g++}" -std=c++17 -O1 -g -Wall -Wextra "${flags[@]}" \
  cpu_api.cpp isa.cpp apply_mask.cpp masked_topk.cpp topk_*.cpp sign_hashes.cpp sign_histogram.cpp tests/core_test.cpp -o "$build/core_test"
OMP_WAIT_POLICY=passive "$build/core_test" "${2:-20}"

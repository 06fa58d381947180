"""The tests of the GPU kernels without a GPU, and what can be said of their machine code without running it."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from checkout import ROOT

pytestmark = pytest.mark.long  # whole files of tests in processes of their own, and compilers

SOURCES = ROOT / "csrc" / "cuda"
# test_library and test_checks too: torch.compile, opcheck, and errors that change nothing
NAMES = re.search('^files="(.*)"$', (ROOT / "benchmarks" / "gpu.sh").read_text(), re.MULTILINE)[1].split()
FILES = [str(ROOT / name) for name in NAMES]


def run(*command, **environment):
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def pytest_of(*arguments, **environment):
    return run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, **environment)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The CUDA sources compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs GCC on Linux")
    target = tmp_path_factory.mktemp("cuda") / "emulated.so"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"]  # whose longjmp knows of no fibers
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    include = f"-I{ROOT / 'tests' / 'cuda'}"
    run(compiler, *flags, *warnings, include, "-x", "c++", *map(str, sorted(SOURCES.glob("*.cu"))), "-o", str(target))
    return target


def test_cuda_kernels_on_the_cpu(library):
    assert "passed" in pytest_of(*FILES, "-k", "cuda", LAYERCOLLAPSE_CUDA_EMULATED=str(library))


def test_c_functions_of_cuda_touch_no_memory_but_their_own(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs GCC on Linux")
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-U_FORTIFY_SOURCE", f"-I{ROOT / 'tests' / 'cuda'}", "-x", "c++"]
    sources = [ROOT / "csrc" / "tests" / "cuda_driver.cu", *sorted(SOURCES.glob("*.cu"))]
    run(compiler, *flags, *map(str, sources), "-o", str(tmp_path / "driver"))
    # Fibers have stacks of their own, of which AddressSanitizer need not know.
    output = run(str(tmp_path / "driver"), "20", ASAN_OPTIONS="detect_stack_use_after_return=0")
    assert "20 cases of each op" in output


def test_triton_kernels_in_the_interpreter():
    triton = pytest.importorskip("triton")
    if triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 takes int() of arrays, which NumPy 2.4 refuses")
    assert "passed" in pytest_of(*FILES, "-k", "triton or faster", TRITON_INTERPRET="1")


@pytest.mark.skipif(torch.version.hip is not None, reason="for NVIDIA")
def test_triton_kernels_compile_without_a_gpu(tmp_path):
    pytest.importorskip("triton")
    names = ["columns, channels last, 16-bit", "count, bf16", "apply, fp32", "apply_mask"]
    command = [sys.executable, "-m", "layercollapse.kernels.compile", "--arch", "90", "--exactly", *names]
    table = run(*command, TRITON_CACHE_DIR=str(tmp_path))
    assert table.count("sm_90") == len(names)

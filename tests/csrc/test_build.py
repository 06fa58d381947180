"""What the build makes: one thread pool, instruction sets chosen at run time, and a package that lives without it."""

import shutil
import subprocess
import sys

import pytest

from checkout import ROOT
from layercollapse import ops

built = pytest.mark.skipif(not ops.backends()["cpu"].available, reason="the C++ part is not built")


def python(script, **environment):
    run = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", **environment},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@built
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("first", ["torch", "layercollapse_core._core"])
def test_one_libgomp_whichever_is_loaded_first(first):
    script = f"""if True:
        import {first}, torch, layercollapse_core._core
        torch.ones(10**6).sum()
        print(len({{line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}}))
    """
    assert python(script) == "1"


@built
@pytest.mark.parametrize("isa", ["portable", "auto", "avx2", "avx512"])
def test_instruction_set_from_the_environment(isa):
    from layercollapse_core import _core

    try:
        _core.use_isa(isa)
    except ValueError:
        pytest.skip("not on this CPU")
    finally:
        _core.use_isa("auto")
    name = python("from layercollapse_core import _core; print(_core.isa())", LAYERCOLLAPSE_ISA=isa)
    assert isa in (name, "auto")


@built
def test_an_unknown_instruction_set_is_an_obstacle_not_a_crash():
    script = """if True:
        import torch; from layercollapse import ops
        ops.sign_histogram(torch.ones(2, 2)); print(ops.backends()['cpu'])
    """
    status = python(script, LAYERCOLLAPSE_ISA="mmx")
    assert "available=False" in status
    assert "LAYERCOLLAPSE_ISA: expected auto, portable" in status


def test_without_the_core_the_reference_runs_and_says_so():
    script = """if True:
        import sys; sys.modules['layercollapse_core._core'] = None
        import torch; from layercollapse import ops
        assert ops.sign_histogram(torch.ones(2, 2)).tolist() == [[0, 0, 2, 0]] * 2
        try: ops.use_backend('cpu')
        except ValueError as error: print(error)
    """
    assert "use_backend: 'cpu' cannot run here: the C++ core is not built" in python(script)


def test_the_core_includes_no_torch_header():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")]
    assert sources
    assert not [
        path for path in sources if "#include <torch" in path.read_text() or "#include <ATen" in path.read_text()
    ]


FAKE_NVCC = """#!/bin/sh
if [ "$1" = --list-gpu-code ]; then echo sm_80; echo sm_90; exit; fi
echo "$@" >> "$NVCC_CALLS"
exit 1
"""


def nvcc_of(tmp_path, **environment):
    """What setup.py gives to an nvcc that knows sm_80 and sm_90, and what it prints."""
    (tmp_path / "bin").mkdir()
    nvcc, calls = tmp_path / "bin" / "nvcc", tmp_path / "calls"
    nvcc.write_text(FAKE_NVCC)
    nvcc.chmod(0o755)
    calls.touch()
    # Without pyproject.toml, whose metadata an environment's own setuptools may be too old for.
    (tmp_path / "source").mkdir()
    for name in ("setup.py", "csrc", "kernels", "layercollapse"):
        (tmp_path / "source" / name).symlink_to(ROOT / name)
    # Not the C++ core: "build_ext" of the CUDA library alone.
    script = (
        "import setuptools, sys; made = setuptools.setup\n"
        "def only_cuda(**k): return made(**{**k, 'ext_modules': k['ext_modules'][-1:]})\n"
        "setuptools.setup = only_cuda; sys.argv = ['setup.py', 'build_ext', '--build-lib', sys.argv[1]]\n"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path / "source",
        env={"PATH": "/usr/bin:/bin", "CUDA_HOME": str(tmp_path), "NVCC_CALLS": str(calls), **environment},
    )
    codes = [word for word in calls.read_text().split() if word.startswith(("-gencode", "-arch"))]
    return codes, run


def code(arch, kind):
    return f"-gencode=arch=compute_{arch},code={kind}_{arch}"


@pytest.mark.parametrize(
    ("asked", "codes", "left_out"),
    [
        ("", [code(80, "sm"), code(90, "sm"), code(90, "compute")], "does not know 10.0+PTX"),
        ("9.0", [code(90, "sm")], None),
        ("8.0;9.0+PTX", [code(80, "sm"), code(90, "sm"), code(90, "compute")], None),
        ("8.0+PTX 8.9", [code(80, "sm"), code(80, "compute")], "does not know 8.9"),
        ("native", ["-arch=native"], None),
    ],
)
def test_cuda_architectures_are_those_of_the_environment_that_nvcc_knows(asked, codes, left_out, tmp_path):
    pytest.importorskip("pybind11")
    got, run = nvcc_of(tmp_path, TORCH_CUDA_ARCH_LIST=asked)
    assert got == codes
    assert ("does not know" in run.stdout) == (left_out is not None)
    assert left_out is None or left_out in run.stdout


def test_an_nvcc_that_knows_none_of_them_is_an_error_or_said(tmp_path):
    pytest.importorskip("pybind11")
    (tmp_path / "auto").mkdir()
    (tmp_path / "forced").mkdir()
    codes, run = nvcc_of(tmp_path / "auto", TORCH_CUDA_ARCH_LIST="12.0")
    assert codes == []
    assert run.returncode == 0
    assert "got one for sm_80 sm_90" in run.stdout + run.stderr
    _, forced = nvcc_of(tmp_path / "forced", TORCH_CUDA_ARCH_LIST="12.0", LAYERCOLLAPSE_CUDA="1")
    assert forced.returncode != 0
    assert "got one for sm_80 sm_90" in forced.stdout + forced.stderr


def test_a_bad_list_of_architectures_is_named(tmp_path):
    pytest.importorskip("pybind11")
    _, run = nvcc_of(tmp_path, TORCH_CUDA_ARCH_LIST="Hopper!")
    assert run.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST: expected native or numbers like 9.0 and 9.0+PTX, got 'Hopper!'" in run.stderr


def test_a_checkout_that_is_not_installed_says_so(tmp_path):
    """No site packages: nothing but the folder, whose other modules import torch."""
    shutil.copytree(ROOT / "layercollapse", tmp_path / "layercollapse", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import sys, types
sys.modules["layercollapse"] = package = types.ModuleType("layercollapse")
package.__path__ = ["layercollapse"]
import layercollapse._util
"""
    command = [sys.executable, "-S", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "install it first: pip install -e ." in run.stderr

"""What the build makes: one thread pool, instruction sets chosen at run time, and a package that lives without it."""

import subprocess
import sys
from pathlib import Path

import pytest

from layercollapse import ops

ROOT = Path(__file__).parent.parent
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
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc").glob("*.inl")]
    assert sources
    assert not [
        path for path in sources if "#include <torch" in path.read_text() or "#include <ATen" in path.read_text()
    ]

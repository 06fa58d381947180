"""The C functions of layercollapse.h: against the reference, on bad input, and from programs in C and C++."""

import ctypes
import shutil
import subprocess
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int64, c_void_p

import layercollapse_core
import pytest
import torch

from checkout import ROOT
from layercollapse import LayerCollapseError, ops
from layercollapse.ops import cpu

DONE, NAN, TOO_MANY, ARGUMENT = 0, 1, 2, 3
pytestmark = pytest.mark.skipif(
    not ops.backends()["cpu"].available or sys.platform != "linux", reason="the C++ part is not built"
)


class Activation(Structure):
    _fields_ = (
        ("x", c_void_p), ("out", c_void_p), ("sizes", POINTER(c_int64)), ("strides", POINTER(c_int64)),
        ("dims", c_int64), ("channel_dim", c_int64), ("dtype", c_int64), ("upper", c_double),
    )  # fmt: skip


class Weight(Structure):
    _fields_ = (
        ("values", c_void_p), ("mask", c_void_p), ("dtype", c_int64), ("dims", c_int64),
        ("sizes", POINTER(c_int64)), ("strides", POINTER(c_int64)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(layercollapse_core.library("cpu")))
    loaded.lc_cpu_isa.restype = c_char_p
    return loaded


def numbers(values):
    return (c_int64 * len(values))(*values)


def activation(x, channel_dim, upper, out):
    fields = {
        "x": x.data_ptr(),
        "out": out.data_ptr(),
        "sizes": numbers(x.shape),
        "strides": numbers(x.stride()),
        "dims": x.dim(),
        "channel_dim": channel_dim % x.dim(),
        "dtype": cpu.DTYPE_CODES[x.dtype],
        "upper": upper or 0.0,
    }
    return Activation(**fields)


def weight_of(weight, mask):
    fields = {
        "values": weight.data_ptr(),
        "mask": mask.data_ptr(),
        "dtype": cpu.DTYPE_CODES[weight.dtype],
        "dims": weight.dim(),
        "sizes": numbers(weight.shape),
        "strides": numbers(weight.stride()),
    }
    return Weight(**fields)


def table(structures):
    return (type(structures[0]) * len(structures))(*structures)


def topk(library, weights, masks, k, scope, threads=1):
    rows = table([weight_of(weight, mask) for weight, mask in zip(weights, masks, strict=True)])
    thresholds, index, kept = (c_float * len(k))(), c_int64(-1), c_int64(-1)
    status = library.lc_cpu_masked_topk(
        rows,
        c_int64(len(rows)),
        numbers(k),
        c_int(scope == "global"),
        thresholds,
        c_int(threads),
        byref(index),
        byref(kept),
    )
    return status, list(thresholds), index.value, kept.value


def by_reference(call):
    with ops.use_backend("reference"):
        return call()


def test_many_activations_in_one_call(library):
    torch.manual_seed(0)
    cases = [
        (torch.randn(4, 5, 7), 1, None),
        (torch.randn(3, 8, 6).to(torch.bfloat16).transpose(1, 2), -1, 0.5),
        (torch.randn(2, 9).half()[:, ::2], 1, 6.0),
        (torch.randn(6)[:, None].expand(6, 3), 0, 1e39),
        (torch.randn(0, 4), 1, None),
    ]
    outs = [torch.full((x.shape[dim], 4 if upper is None else 5), 7) for x, dim, upper in cases]
    expected = [
        by_reference(lambda x=x, dim=dim, upper=upper: 7 + ops.sign_histogram(x, channel_dim=dim, upper=upper))
        for x, dim, upper in cases
    ]
    rows = table([activation(*case, out) for case, out in zip(cases, outs, strict=True)])
    assert library.lc_cpu_sign_histogram(rows, c_int64(len(rows)), c_int(2)) == DONE
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)


def test_hashes_of_many_activations(library):
    torch.manual_seed(0)
    cases = [
        (torch.randn(4, 70, 7), 1, None),
        (torch.randn(3, 8, 6).to(torch.bfloat16).transpose(1, 2), -1, None),
        (torch.randn(2, 9).half()[:, ::2], 1, None),
        (torch.randn(0, 4), 1, None),
    ]
    expected = [by_reference(lambda x=x, dim=dim: ops.sign_hashes(x, channel_dim=dim)) for x, dim, _ in cases]
    outs = [torch.zeros_like(wanted) for wanted in expected]
    rows = table([activation(*case, out) for case, out in zip(cases, outs, strict=True)])
    assert library.lc_cpu_sign_hashes(rows, c_int64(len(rows)), c_int(2)) == DONE
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)
    rows[1].channel_dim = 3
    assert library.lc_cpu_sign_hashes(rows, c_int64(len(rows)), c_int(2)) == ARGUMENT


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_weights_of_any_layout(library, scope, threads):
    torch.manual_seed(0)
    weights = [torch.randn(40_000), torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last).half()]
    weights += [torch.randn(33, 9).to(torch.bfloat16).t(), torch.tensor(3.0), torch.randn(0, 3)]
    masks = [ops.pack_mask(torch.rand(weight.shape) < 0.8) for weight in weights]
    kept = [int(ops.unpack_mask(mask, weight.shape).sum()) for weight, mask in zip(weights, masks, strict=True)]
    k = [count // 2 for count in kept] if scope == "layer" else [sum(kept) // 2]
    expected = [weight.clone() for weight in weights], [mask.clone() for mask in masks]
    wanted = by_reference(lambda: ops.masked_topk_(*expected, k, scope=scope))
    status, thresholds, _, _ = topk(library, weights, masks, k, scope, threads)
    assert status == DONE
    assert thresholds == wanted.tolist()
    for a, b in zip((*weights, *masks), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(a, b)


def test_counts_of_magnitudes(library):
    weights = [torch.randn(40_000), torch.randn(6, 5).half().t(), torch.zeros(0)]
    masks = [ops.pack_mask(torch.rand(weight.shape) < 0.8) for weight in weights]
    rows = table([weight_of(weight, mask) for weight, mask in zip(weights, masks, strict=True)])
    for lo, hi in ((0, ops.TOPK_END), (0x3F000000, 0x3F800000)):
        counts = torch.zeros(ops.TOPK_COUNTS, dtype=torch.int64)
        place = c_void_p(counts.data_ptr())
        assert library.lc_cpu_topk_count(rows, c_int64(3), c_int64(lo), c_int64(hi), place, c_int(2)) == DONE
        assert torch.equal(counts, by_reference(lambda lo=lo, hi=hi: ops.topk_count(weights, masks, lo=lo, hi=hi)))
    for lo, hi in ((-1, 5), (5, 5), (0, ops.TOPK_END + 1)):
        assert library.lc_cpu_topk_count(rows, c_int64(3), c_int64(lo), c_int64(hi), place, c_int(2)) == ARGUMENT


def test_a_mask_alone(library):
    weight, mask = torch.randn(5, 13).t(), ops.pack_mask(torch.rand(13, 5) < 0.5)
    expected = weight.clone()
    by_reference(lambda: ops.apply_mask_(expected, mask))
    assert library.lc_cpu_apply_mask(table([weight_of(weight, mask)]), c_int64(1), c_int(0)) == DONE
    assert torch.equal(weight, expected)


def test_errors_of_the_data_change_nothing(library):
    weights = [torch.ones(9), torch.ones(4)]
    masks = [ops.pack_mask(torch.ones(9, dtype=torch.bool)), torch.tensor([3], dtype=torch.uint8)]
    assert topk(library, weights, masks, [1, 3], "layer") == (TOO_MANY, [0, 0], 1, 2)
    weights[1][3] = torch.nan
    status, _, index, _ = topk(library, weights, masks, [1, 1], "layer")
    assert (status, index) == (NAN, 1)
    assert weights[0].tolist() == [1] * 9
    assert [mask.tolist() for mask in masks] == [[255, 1], [3]]


def changed(structure, field, value):
    setattr(structure, field, numbers(value) if isinstance(value, list) else value)
    return structure


BAD_ACTIVATIONS = [
    *[("dtype", 3), ("dtype", -1), ("dims", 65), ("dims", -1), ("dims", 0), ("channel_dim", 2), ("channel_dim", -1)],
    *[("x", None), ("out", None), ("sizes", None), ("strides", None), ("sizes", [2**40, 2**40])],
    *[("sizes", [2, -3]), ("upper", -1.0), ("upper", float("nan")), ("upper", 1e-46)],
]


@pytest.mark.parametrize(("field", "value"), BAD_ACTIVATIONS)
def test_bad_activations_are_refused_before_the_first_is_counted(library, field, value):
    x, out = torch.ones(2, 3), torch.zeros(3, 4, dtype=torch.int64)
    rows = table([activation(x, 1, None, out), changed(activation(x, 1, None, out), field, value)])
    assert library.lc_cpu_sign_histogram(rows, c_int64(2), c_int(1)) == ARGUMENT
    assert not out.any()


BAD_WEIGHTS = [
    *[("dtype", 7), ("dims", 65), ("dims", -1), ("sizes", [-9])],
    *[("values", None), ("mask", None), ("sizes", None), ("strides", None)],
]


@pytest.mark.parametrize(("field", "value"), BAD_WEIGHTS)
def test_bad_weights_are_refused(library, field, value):
    weight, mask = torch.ones(9), torch.tensor([0, 0], dtype=torch.uint8)
    rows, thresholds = table([changed(weight_of(weight, mask), field, value)]), (c_float * 1)()
    topk = library.lc_cpu_masked_topk
    assert topk(rows, c_int64(1), numbers([0]), c_int(0), thresholds, c_int(1), None, None) == ARGUMENT
    assert library.lc_cpu_apply_mask(rows, c_int64(1), c_int(1)) == ARGUMENT
    assert weight.tolist() == [1] * 9


def test_a_k_below_zero_is_refused(library):
    weight, mask = torch.ones(9), torch.tensor([0, 0], dtype=torch.uint8)
    assert topk(library, [weight], [mask], [-1], "layer")[0] == ARGUMENT
    assert weight.tolist() == [1] * 9


def test_lists_that_do_not_exist_are_refused(library):
    weight, mask = torch.ones(9), torch.tensor([255, 1], dtype=torch.uint8)
    out = torch.zeros(1, 4, dtype=torch.int64)
    rows, counts = table([weight_of(weight, mask)]), numbers([0] * ops.TOPK_COUNTS)
    k, thresholds = numbers([3]), (c_float * 1)()
    for weights, count in ((None, 1), (rows, -1)):
        number = c_int64(count)
        for scope in (0, 1):
            call = (weights, number, k, c_int(scope), thresholds, c_int(1), None, None)
            assert library.lc_cpu_masked_topk(*call) == ARGUMENT
        assert library.lc_cpu_apply_mask(weights, number, c_int(1)) == ARGUMENT
        assert library.lc_cpu_topk_count(weights, number, c_int64(0), c_int64(1), counts, c_int(1)) == ARGUMENT
    for numbers_, places in ((None, thresholds), (k, None)):
        call = (rows, c_int64(1), numbers_, c_int(0), places, c_int(1), None, None)
        assert library.lc_cpu_masked_topk(*call) == ARGUMENT
    assert library.lc_cpu_topk_count(rows, c_int64(1), c_int64(0), c_int64(1), None, c_int(1)) == ARGUMENT
    some = table([activation(weight[:, None], 1, None, out)])
    for op in (library.lc_cpu_sign_histogram, library.lc_cpu_sign_hashes):
        assert op(None, c_int64(1), c_int(1)) == ARGUMENT
        assert op(some, c_int64(-1), c_int(1)) == ARGUMENT
    assert (weight.tolist(), mask.tolist(), out.any().item(), any(counts)) == ([1] * 9, [255, 1], False, False)


def test_no_weights_are_one_group_all_the_same(library):
    thresholds, index, kept = (c_float * 1)(7), c_int64(-1), c_int64(-1)
    call = (None, c_int64(0), numbers([5]), c_int(1), thresholds, c_int(1), byref(index), byref(kept))
    assert library.lc_cpu_masked_topk(*call) == TOO_MANY
    assert (index.value, kept.value) == (0, 0)
    call = (None, c_int64(0), numbers([0]), c_int(1), thresholds, c_int(1), None, None)
    assert (library.lc_cpu_masked_topk(*call), thresholds[0]) == (DONE, 0)


def test_a_bound_is_not_looked_at_by_hashes(library):
    x, out = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    rows = table([changed(activation(x, 1, None, out), "upper", -1.0)])
    assert library.lc_cpu_sign_hashes(rows, c_int64(1), c_int(1)) == DONE
    assert torch.equal(out, ops.sign_hashes(x))


def test_more_threads_than_there_is_work_take_no_memory(library):
    weight, mask = torch.randn(2**17), torch.full((2**14,), 255, dtype=torch.uint8)
    twin, kept = weight.clone(), mask.clone()
    assert topk(library, [weight], [mask], [999], "layer", threads=2**31 - 1)[0] == DONE
    ops.masked_topk_(twin, kept, 999)
    assert torch.equal(mask, kept)
    rows, counts = table([weight_of(weight, mask)]), numbers([0] * ops.TOPK_COUNTS)
    call = (rows, c_int64(1), c_int64(0), c_int64(ops.TOPK_END), counts, c_int(2**31 - 1))
    assert library.lc_cpu_topk_count(*call) == DONE
    assert list(counts) == ops.topk_count(twin, kept).tolist()


def test_the_instruction_set(library):
    assert library.lc_cpu_isa().decode() in ops.backends()["cpu"].detail


def test_a_library_that_is_not_there_is_named():
    with pytest.raises(LayerCollapseError, match="part: expected 'cpu' or 'cuda', got 'tpu'"):
        layercollapse_core.library("tpu")


# --- programs ---------------------------------------------------------------------------------------------

OUTPUT = """channel 0: 3 negative, 0 zero, 1 positive
channel 1: 2 negative, 1 zero, 1 positive
channel 2: 0 negative, 0 zero, 4 positive
cleared up to 1, weights 3 0 0 -2 4, mask 25
too many: 3 entries kept
"""
EXAMPLE = ROOT / "examples" / "cpp"


def run(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(tool):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"needs {tool}")


def options(*which):
    return run(sys.executable, "-m", "layercollapse_core", *which).split()


@needs("g++")
def test_a_program_by_gcc(tmp_path):
    flags = ["-Wall", "-Wextra", "-Werror", str(EXAMPLE / "prune.cpp"), *options("--cflags", "--libs")]
    run("g++", *flags, "-o", str(tmp_path / "prune"))
    assert run(str(tmp_path / "prune")) == OUTPUT


@needs("cmake")
@needs("g++")
def test_a_program_by_cmake(tmp_path):
    run("cmake", "-S", str(EXAMPLE), "-B", str(tmp_path), f"-Dlayercollapse_DIR={options('--cmakedir')[0]}")
    run("cmake", "--build", str(tmp_path))
    assert run(str(tmp_path / "prune")) == OUTPUT


@needs("gcc")
def test_the_header_is_c(tmp_path):
    (tmp_path / "uses.c").write_text('#include "layercollapse.h"\nint main(void) { return lc_cpu_isa() == 0; }\n')
    flags = ["-std=c99", "-pedantic", "-Wall", "-Werror", str(tmp_path / "uses.c"), *options("--cflags", "--libs")]
    run("gcc", *flags, "-o", str(tmp_path / "uses"))
    run(str(tmp_path / "uses"))

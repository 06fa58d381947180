"""Numbers that Python and C++ both write down are equal. (The layouts of tables come from the core itself.)"""

import re

import layercollapse_core
import pytest

from checkout import ROOT
from layercollapse import ops
from layercollapse.kernels import bits, cuda, topk_plan
from layercollapse.ops import checks, cpu, reference

CSRC = ROOT / "csrc"
HEADER = "python/include/layercollapse.h"


def constant(file, name):
    """The value of a constexpr or an enumerator that is a plain number."""
    found = re.search(rf"\b{name} = (0x[0-9a-f]+|\d+)u?\W", (CSRC / file).read_text())
    assert found, f"{name} is not in {file}"
    return int(found[1], 0)


PAIRS = [
    ("topk_count.h", "kCountBins", ops.TOPK_BINS),
    (HEADER, "LC_TOPK_COUNTS", ops.TOPK_COUNTS),
    ("layout.h", "kMaxDims", checks.MOST_DIMS),
    (HEADER, "LC_MAX_DIMS", checks.MOST_DIMS),
    ("dtypes.h", "kCommonEnd", ops.TOPK_END),
    ("plan/topk_plan.h", "kShortest", topk_plan.SHORTEST),
    (HEADER, "LC_TOPK_LAYER", cuda.SCOPES["layer"]),
    (HEADER, "LC_TOPK_GLOBAL", cuda.SCOPES["global"]),
    (HEADER, "LC_TOPK_COUNT", cuda.SCOPES["count"]),
    ("sign_hash.h", "kPhi", reference.PHI),
    ("sign_hash.h", "kMixFactor1", reference.MIX[0][1]),
    ("sign_hash.h", "kMixFactor2", reference.MIX[1][1]),
    (HEADER, "LC_NAN", layercollapse_core._NAN),
    (HEADER, "LC_TOO_MANY", layercollapse_core._TOO_MANY),
    *((HEADER, f"LC_{str(dtype)[6:].upper()}", code) for dtype, code in cpu.DTYPE_CODES.items()),
]


@pytest.mark.parametrize(("file", "name", "value"), PAIRS, ids=[name for _, name, _ in PAIRS])
def test_of_cpp_and_of_python(file, name, value):
    assert constant(file, name) == value


def test_of_the_parts_of_python():
    assert {str(dtype)[6:]: code for dtype, code in cpu.DTYPE_CODES.items()} == layercollapse_core._CODES
    assert {dtype: kind.code for dtype, kind in bits.FLOAT_TYPES.items()} == cpu.DTYPE_CODES

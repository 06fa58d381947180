"""The cases of the benchmark: every provider is right, and a wrong answer is found out."""

from collections import Counter

import pytest
import torch

from layercollapse.ops import bench_cases

CASES = {
    "signs": lambda: bench_cases.sign_histogram_case((3, 5, 7), torch.float32, "channels_first"),
    "signs, channels last": lambda: bench_cases.sign_histogram_case((3, 5, 7), torch.bfloat16, "channels_last"),
    "hashes": lambda: bench_cases.sign_hashes_case((3, 70, 7), torch.float32, "channels_first"),
    "hashes, channels last": lambda: bench_cases.sign_hashes_case((3, 5, 7), torch.float16, "channels_last"),
    "weights": lambda: bench_cases.masked_topk_case([(40,), (61,)], torch.float32),
    "weights together": lambda: bench_cases.masked_topk_case([(40,), (61,)], torch.float32, scope="global"),
    "weights of two values": lambda: bench_cases.masked_topk_case([(400,)], torch.float32, values="two", peers=False),
    "weights, channels last": lambda: bench_cases.masked_topk_case(
        [(4, 3, 2, 2)], torch.float32, "channels_last", peers=False
    ),
    "masks": lambda: bench_cases.apply_mask_case([(50,), (70,)], torch.float32),
    "masks that change": lambda: bench_cases.apply_mask_case(
        [(4, 3, 2, 2)], torch.bfloat16, "channels_last", changes=True
    ),
}


def answer_of(case, provider):
    case.reset()
    answer = case.providers[provider]()
    return answer() if callable(answer) else answer


@pytest.mark.parametrize("name", CASES)
def test_every_provider_agrees_after_every_reset(name):
    case = CASES[name]()
    for _ in range(2):
        for provider in case.providers:
            case.agrees(answer_of(case, provider))
        case.floor()
    assert bench_cases.OURS in case.providers


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("masks")])
def test_a_wrong_answer_is_an_error(name):
    case = CASES[name]()
    answer = answer_of(case, bench_cases.OURS)
    with pytest.raises(AssertionError):
        case.agrees(answer + 1)


@pytest.mark.parametrize("name", ["masks", "masks that change"])
def test_weights_that_a_mask_should_have_cleared_are_an_error(name):
    case = CASES[name]()
    answer_of(case, bench_cases.OURS)
    case.reset()  # as if nothing had been done
    if name == "masks":
        case.agrees(None)  # what is zero already stays so
    else:
        with pytest.raises(AssertionError):
            case.agrees(None)


@pytest.mark.parametrize("size", [1_000, 20_000])
def test_cases_have_about_the_size_that_is_asked_for(size):
    cases = list(bench_cases.by_size([size]))
    assert Counter(case.op for case in cases) == {
        "sign_histogram": 4,
        "sign_hashes": 4,
        "masked_topk_": 4,
        "apply_mask_": 3,
    }
    assert all(0.5 * size <= case.entries <= size for case in cases)


def test_bytes_are_the_fewest_that_must_be_touched():
    case = CASES["signs"]()
    assert (case.entries, case.bytes, case.shape) == (105, 4 * 105, "(3, 5, 7)")
    case = CASES["signs, channels last"]()
    assert (case.bytes, case.shape, case.dtype) == (2 * 105, "(3, 7, 5)", "bfloat16")
    assert CASES["hashes"]().bytes == 4 * 3 * 70 * 7 + 8 * 3 * 7  # read once, and a hash for each row

"""`sign_histogram` of lists: what each tensor alone gives, on every backend, or an error that changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import DEVICES
from layercollapse import LayerCollapseError, ops
from layercollapse.kernels import triton_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SLOW = triton_backend.interpreted()  # each program takes milliseconds
NAN, INF = float("nan"), float("inf")
VALUES = [0.0, -0.0, 6.0, -6.0, 5.99, 1e-40, -1e-40, INF, -INF, NAN, -NAN]


@pytest.fixture(params=list(DEVICES))
def device(request):
    with ops.use_backend(request.param):
        yield DEVICES[request.param]
        assert ops.last_backend() in (request.param, "reference")


def mixed(shape, dtype=torch.float32, seed=0):
    """Values of both signs with every special class among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 4
    special = torch.rand(x.shape, generator=generator) < 0.2
    index = torch.randint(len(VALUES), x.shape, generator=generator)
    return torch.where(special, torch.tensor(VALUES)[index], x).to(dtype)


def one_by_one(xs, dims, uppers, outs=None):
    with ops.use_backend("reference"):
        return [
            ops.sign_histogram(x, channel_dim=dim, upper=upper, out=None if outs is None else out.clone())
            for x, dim, upper, out in zip(xs, dims, uppers, xs if outs is None else outs, strict=True)
        ]


def lists_agree(xs, dims, uppers):
    got = ops.sign_histogram(xs, channel_dim=dims, upper=uppers)
    assert isinstance(got, list)
    for index, (counts, expected) in enumerate(zip(got, one_by_one(xs, dims, uppers), strict=True)):
        assert torch.equal(counts, expected), index


def a_model(device):
    """Activations that every loop reads, of every type, some without a sample or a channel."""
    xs, dims = [], []
    for index, (shape, dim) in enumerate(
        [
            ((4, 16, 7, 7), 1),
            ((35, 64), 1),
            ((3, 9, 24), -1),
            ((1, 2, 17_000), 1),
            ((2, 1, 8_200 if SLOW else 16_400), 1),
            ((2, 300, 4), -1),
            ((0, 5), 1),
            ((5, 0, 3), 1),
            ((131, 3), 1),
            ((2, 40_000, 3) if not SLOW else (2, 40, 3), 1),
            ((9,), 0),
        ]
    ):
        for dtype in DTYPES[:1] if SLOW else DTYPES:
            xs.append(mixed(shape, dtype, index).to(device))
            dims.append(dim)
    xs.append(mixed((6, 9, 10))[..., ::2].to(device))
    xs.append(mixed((2, 8, 5, 5)).to(device).to(memory_format=torch.channels_last))
    return xs, [*dims, 1, 1]


def test_a_list_is_counted_like_each_of_it(device):
    xs, dims = a_model(device)
    lists_agree(xs, dims, [None] * len(xs))
    lists_agree(xs, dims, [(None, 6.0, 0.3)[index % 3] for index in range(len(xs))])


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.skipif("cpu" not in DEVICES, reason="the C++ part is not built")
def test_any_number_of_threads(core, number):
    xs, dims = a_model("cpu")
    with core(threads=number), ops.use_backend("cpu"):
        lists_agree(xs, dims, [6.0] * len(xs))
        lists_agree([mixed((64, 300), seed=seed) for seed in range(40)], [1] * 40, [None] * 40)


def test_one_number_or_bound_for_all_and_counts_to_add_to(device):
    xs = [mixed((5, 8), seed=seed).to(device) for seed in range(3)]
    outs = [torch.full((8, 5), 7, device=device) for _ in xs]
    expected = one_by_one(xs, [-1] * 3, [6.0] * 3, outs)
    versions = [out._version for out in outs]
    got = ops.sign_histogram(tuple(xs), channel_dim=-1, upper=6.0, out=tuple(outs))
    assert all(a is b for a, b in zip(got, outs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))
    assert all(out._version > version for out, version in zip(outs, versions, strict=True))


def test_more_than_one_launch_takes(device):
    count = 3 if SLOW else 130
    xs = [mixed((1 + seed % 5, 8, 3 + seed % 3), seed=seed).to(device) for seed in range(count)]
    lists_agree(xs, [1] * count, [None] * count)


@pytest.mark.skipif("triton" not in DEVICES, reason="needs a GPU, or Triton's interpreter")
def test_triton_counts_what_is_read_in_one_way_in_one_launch(monkeypatch):
    from layercollapse.kernels import sign_histogram

    lists = []
    monkeypatch.setattr(sign_histogram, "_count", lambda *_: pytest.fail("a launch for one tensor"))
    count = sign_histogram.PartList.count
    monkeypatch.setattr(
        sign_histogram.PartList, "count", lambda self, *tensors: (lists.append(len(self._parts)), count(self, *tensors))
    )
    xs = [mixed((3, 64), seed=seed).to(DEVICES["triton"]) for seed in range(4)]
    xs += [mixed((2, 8, 4), torch.float16, seed).to(DEVICES["triton"]) for seed in range(3)]
    with ops.use_backend("triton"):
        lists_agree(xs, [1] * 7, [None] * 7)
    assert lists == [4, 3]


def test_a_float64_runs_the_list_on_the_reference():
    got = ops.sign_histogram([torch.tensor([-1.0], dtype=torch.float64), torch.tensor([2.0])], channel_dim=0)
    assert [counts.tolist() for counts in got] == [[[1, 0, 0, 0]], [[0, 0, 1, 0]]]
    assert ops.last_backend() == "reference"


def test_a_backend_without_it_counts_one_by_one():
    from layercollapse.ops import reference
    from layercollapse.ops import registry as backends

    calls = []
    backend = backends.Backend(
        name="one by one",
        status=lambda: backends.BackendStatus(True, "for a test"),
        sign_histogram_=lambda *arguments: (calls.append(len(arguments)), reference.sign_histogram_(*arguments)),
        masked_topk_=reference.masked_topk_,
    )
    xs, dims = a_model("cpu")
    backend.sign_histograms_(xs, dims, [None] * len(xs), outs := [torch.zeros_like(c) for c in expected_of(xs, dims)])
    assert calls == [4] * len(xs)
    assert all(torch.equal(a, b) for a, b in zip(outs, expected_of(xs, dims), strict=True))


def expected_of(xs, dims):
    return one_by_one(xs, dims, [None] * len(xs))


@pytest.mark.parametrize("out", [None, [], ()])
def test_an_empty_list(out):
    assert ops.sign_histogram([], out=out) == []
    assert ops.sign_histogram((), channel_dim=[], upper=[6.0][:0]) == []


def test_gradients_are_not_tracked(device):
    x = mixed((4, 3)).to(device).requires_grad_()
    assert torch.equal(ops.sign_histogram([x])[0], ops.sign_histogram(x))


X = torch.ones(2, 3)


def zeros(*shape):
    return torch.zeros(*(shape or (3, 4)), dtype=torch.int64)


def halves():
    both = zeros(5, 4)
    return [both[:3], both[2:]]


BAD = [
    ({"x": [X, 1.0]}, r"x\[1\]: expected a tensor, got float"),
    ({"x": {X}}, "x: expected a tensor or a list of tensors, got set"),
    ({"x": [X, X.int()]}, r"x\[1\]: expected a dense .* tensor, got int32"),
    ({"channel_dim": [1]}, "channel_dim: expected one for each of 2 tensors, got 1"),
    ({"channel_dim": [1, 2]}, r"channel_dim\[1\]: expected a dimension of x\[1\], which has 2, got 2"),
    ({"channel_dim": 1.0}, r"channel_dim\[0\]: expected an int of at most 64 bits, got 1.0"),
    ({"upper": [6.0]}, "upper: expected one for each of 2 tensors, got 1"),
    ({"upper": [None, -1.0]}, r"upper\[1\]: expected a float32 above 0, got -1.0"),
    ({"upper": "6"}, r"upper\[0\]: expected a float32 above 0, got '6'"),
    ({"out": [zeros()]}, "out: expected one for each of 2 tensors, got 1"),
    ({"out": zeros()}, "out: expected a list of tensors, got Tensor"),
    ({"out": [zeros(), None]}, "out: expected a list of tensors"),
    ({"out": [zeros(), zeros(3, 5)]}, r"out\[1\]: expected a contiguous int64 tensor of shape \(3, 4\), got int64"),
    ({"out": [zeros(), zeros(4, 3).t()]}, r"out\[1\]: expected a contiguous int64"),
    ({"out": [zeros()] * 2}, r"out\[1\]: expected memory of its own, got some that out\[0\] covers too"),
    ({"out": halves()}, r"out\[1\]: expected memory of its own"),
    ({"out": [zeros(), torch._neg_view(zeros())]}, r"out\[1\]: expected a tensor that holds its values"),
    ({"out": [zeros(), zeros().to("meta")]}, r"out\[1\]: expected the device of x\[0\], cpu, got meta"),
    ({"x": [X, X.to("meta")]}, r"x\[1\]: expected the device of x\[0\], cpu, got meta"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_changes_nothing(arguments, message):
    arguments = {"x": [X, X], "out": [zeros(), zeros()], **arguments}
    with pytest.raises(LayerCollapseError, match=message):
        ops.sign_histogram(**arguments)
    outs = [arguments["out"]] if isinstance(arguments["out"], torch.Tensor) else arguments["out"]
    assert not any(out.any() for out in outs if out is not None and out.device.type == "cpu")


@pytest.mark.parametrize("backend", list(DEVICES))
@settings(settings.get_profile("ops"), max_examples=6 if SLOW else 40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=1, max_size=4),
            st.sampled_from(DTYPES),
            st.sampled_from([None, 6.0, 1e-40]),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=5,
    )
)
def test_random_lists(backend, cases):
    xs = [mixed(shape, dtype, len(shape)).to(DEVICES[backend]) for shape, dtype, *_ in cases]
    xs = [x.movedim(0, -1) if moved else x for x, (*_, moved) in zip(xs, cases, strict=True)]
    dims = [dim % x.dim() for x, (*_, dim, _) in zip(xs, cases, strict=True)]
    with ops.use_backend(backend):
        lists_agree(xs, dims, [upper for _, _, upper, *_ in cases])

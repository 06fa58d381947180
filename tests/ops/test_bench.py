"""The benchmark: answers are checked before they are timed, and what a row says follows from its times."""

import pytest
import torch

from layercollapse import LayerCollapseError
from layercollapse.ops import bench
from layercollapse.ops.bench import Row, Table, measure
from layercollapse.ops.bench_cases import Case


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a call says that it takes."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def taking(log, name, *seconds):
        times = iter(seconds)

        def call():
            log.append(name)
            now[0] += next(times)
            return name

        return call

    return taking


def case(log, ours, floor, agrees=lambda answer: None):
    return Case(
        op="op",
        shape="(8,)",
        dtype="float32",
        layout="contiguous",
        entries=1000,
        bytes=4_000_000,
        reset=lambda: log.append("reset"),
        floor=floor,
        providers={"ours": ours, "peer": ours},
        agrees=agrees,
    )


def test_calls_and_floors_take_turns_and_the_median_counts(clock):
    log, checked = [], []
    made = case(log, clock(log, "ours", 0.01, 0.004, 0.002, 0.003), clock(log, "floor", *[0.001] * 3), checked.append)
    row = measure(made, "ours", 3)
    assert checked == ["ours"]
    assert log == ["reset", "ours", *["reset", "ours", "reset", "floor"] * 3]
    # The first call, which compiles and fills caches, is not counted.
    assert (row.ms, row.floor_ms, row.calls) == (pytest.approx(3.0), pytest.approx(1.0), 3)
    assert row.ratio == pytest.approx(3.0)
    assert row.gb_per_s == pytest.approx(4e6 / 3e-3 / 1e9)


def test_a_wrong_answer_is_not_timed(clock):
    log = []

    def wrong(answer):
        raise AssertionError("differs")

    with pytest.raises(AssertionError, match="differs"):
        measure(case(log, clock(log, "ours", 1.0), clock(log, "floor"), wrong), "ours", 3)
    assert log == ["reset", "ours"]


def test_what_takes_long_is_called_once(clock):
    log = []
    row = measure(case(log, clock(log, "ours", 1000.0), clock(log, "floor", *[1.0] * 9)), "ours", 15)
    assert (row.ms, row.calls) == (pytest.approx(1e6), 1)
    assert log.count("floor") == bench.FLOORS


def test_only_the_providers_asked_for():
    log, rows = [], []
    made = case(log, lambda: torch.ones(1).sum(), lambda: torch.ones(1).sum())
    assert bench.run([made], repeats=1, providers=["peer"], progress=rows.append) == rows
    assert [row.provider for row in rows] == ["peer"]
    assert [row.provider for row in bench.run([made], repeats=1)] == ["ours", "peer"]


@pytest.mark.parametrize("arguments", [{"sizes": [999]}, {"sizes": []}, {"repeats": 0}])
def test_bad_arguments(arguments):
    with pytest.raises(LayerCollapseError, match="sizes, repeats: expected at least 1000 and 1"):
        bench.main(**arguments)


def test_a_heading_for_each_case():
    lines = []
    table = Table(lines.append)
    row = {"op": "op", "shape": "(8,)", "dtype": "float32", "layout": "contiguous", "entries": 8, "calls": 3}
    table.add(Row(provider="ours", ms=2.0, gb_per_s=3.0, floor_ms=1.0, ratio=2.0, **row))
    table.add(Row(provider="peer", ms=250.0, gb_per_s=0.024, floor_ms=1.0, ratio=250.0, **row))
    table.add(Row(provider="ours", ms=2.0, gb_per_s=3.0, floor_ms=1.0, ratio=2.0, **{**row, "dtype": "float16"}))
    words = [line.split() for line in lines]
    assert [line[0] for line in words] == ["op", "the", "ours", "peer", "op", "the", "ours"]
    assert words[1][-3:] == ["1.000", "6.00", "1.00"]  # as many bytes in half the time
    assert words[2][-3:] == ["2.000", "3.00", "2.00"]
    assert words[3][-3:] == ["250.000", "0.02", "250"]


def test_the_machine_is_named():
    machine = bench.machine()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()

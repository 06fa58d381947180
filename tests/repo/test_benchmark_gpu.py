"""What the one call on a lent GPU rests on: files that a kill leaves whole, steps with limits, checks that can fail."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from checkout import ROOT
from layercollapse import ops

BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="for a GPU under Linux")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu"), importlib.import_module("gpu_results")
    for name in ("gpu", "gpu_results", "gpu_models"):
        sys.modules.pop(name, None)


def row(case, provider, **values):
    return {"case": case, "provider": provider, "op": "masked_topk_", "dtype": "bfloat16", "entries": 1 << 30, **values}


def read(folder):
    return json.loads((folder / "gpu.json").read_text())


def test_a_process_replaces_its_own_rows_and_no_others(scripts, tmp_path):
    _, results = scripts
    first = results.Results(tmp_path, "cuda", {"device": "a"})
    first.add([row("one", "cuda", ms=1.0), row("one", "torch.sort", ms=9.0)])
    first.skip("two")
    second = results.Results(tmp_path, "triton", {"triton": "3.6"})
    second.add([row("one", "triton", ms=2.0)])
    second.fail("three")
    again = results.Results(tmp_path, "cuda", {"device": "b"})
    again.add([row("one", "cuda", ms=3.0)])
    found = read(tmp_path)
    assert found["about"] == {"device": "b", "triton": "3.6"}
    assert [(r["process"], r["provider"], r["ms"]) for r in found["rows"]] == [
        ("triton", "triton", 2.0),
        ("cuda", "cuda", 3.0),
    ]
    assert found["not measured"] == {"cuda": [], "triton": []}
    assert found["failed"] == {"cuda": [], "triton": ["three"]}
    assert "FAILED in triton: three" in (tmp_path / "gpu.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.txt"]


def test_a_kill_loses_no_case_that_was_done(tmp_path):
    script = f"""if True:
        import os, sys, pathlib, signal
        sys.path.insert(0, {str(BENCHMARKS)!r})
        from gpu_results import Results
        results = Results(pathlib.Path({str(tmp_path)!r}), "cuda", {{}})
        results.add([{row("one", "cuda")!r}])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [r["case"] for r in read(tmp_path)["rows"]] == ["one"]


@pytest.mark.parametrize(
    ("values", "said"),
    [((1.5, 1.6), "cuda met in 2, worst 1.6 (b)"), ((1.5, 1.7), "cuda NOT MET in 1 of 2, worst 1.7 (b)")],
)
def test_goals_are_judged_by_the_worst_row(scripts, values, said):
    _, results = scripts
    rows = [row(case, "cuda", **{"x floor": value}) for case, value in zip("ab", values, strict=True)]
    rows += [row("c", "torch.sort", **{"x floor": 99.0}), row("d", "cuda", **{"x floor": 9.0}) | {"entries": 5}]
    goal = next(goal for goal in results.GOALS if "1 B bfloat16" in goal.text)
    assert said in results.verdict(goal, rows)
    assert "triton not measured" in results.verdict(goal, rows)


def a_bench(gpu, results, folder, **changes):
    settings = {"dry": True, "seconds": 100.0, "backend": "cuda", "peers": False}
    return gpu.Bench(**{**settings, **changes}, results=results.Results(folder, "cuda", {}))


def test_calls_take_turns_and_find_the_inputs_as_at_first(scripts, tmp_path):
    gpu, results = scripts
    bench = a_bench(gpu, results, tmp_path)
    bench.rounds = 4
    log = []
    bench.race(
        {"floor": lambda: log.append("floor"), "op": lambda: log.append("op"), "sort": lambda: log.append("sort")},
        lambda: log.append("-"),
        slow=("sort",),
    )
    assert "".join(f"{entry} " for entry in log) == "- floor - op - sort " * 4 + "- floor - op "


def test_a_case_that_fails_or_comes_too_late_is_a_line(scripts, tmp_path):
    gpu, results = scripts

    def broken():
        yield row("", "cuda")
        raise AssertionError

    bench = a_bench(gpu, results, tmp_path)
    bench.case("broken", broken)
    bench.case("good", lambda: iter([row("good", "cuda")]))
    bench.end = 0
    bench.case("late", broken)
    found = read(tmp_path)
    assert found["failed"]["cuda"] == ["broken"]
    assert found["not measured"]["cuda"] == ["late"]


CHUNK = 16


def selected(change=lambda keep, weight: None):
    """A problem with ties in three chunks, and an answer that may be wrong."""
    before = torch.arange(48, dtype=torch.float32) % 5 - 2  # magnitudes 2 1 0 1 2
    after, mask = before.clone(), ops.pack_mask(torch.ones(48, dtype=torch.bool))
    with ops.use_backend("reference"):
        threshold = float(ops.masked_topk_(after, mask, 20))
    keep = ops.unpack_mask(mask, (48,))
    change(keep, after)
    return before, after, ops.pack_mask(keep), 20, threshold


def test_the_check_in_pieces_takes_what_the_reference_does(scripts, monkeypatch):
    gpu, _ = scripts
    monkeypatch.setattr(gpu, "CHUNK", CHUNK)
    gpu.check(*selected())


def move(keep, after, gone, kept):
    """Let one entry go in the place of another."""
    keep[gone], keep[kept] = False, True
    after[kept] = (kept % 5) - 2.0
    after[gone] = 0


WRONG = {
    "something else changed": lambda keep, after: after.__setitem__(0, 7.0),
    "one above the threshold is gone": lambda keep, after: move(keep, after, 0, 1),
    "one below the threshold was kept": lambda keep, after: move(keep, after, 46, 2),
    "a tie went after one that was kept": lambda keep, after: move(keep, after, 46, 1),  # in another chunk
}


@pytest.mark.parametrize("message", WRONG)
def test_the_check_in_pieces_finds_what_is_wrong(scripts, monkeypatch, message):
    gpu, _ = scripts
    monkeypatch.setattr(gpu, "CHUNK", CHUNK)
    with pytest.raises(AssertionError, match=message):
        gpu.check(*selected(WRONG[message]))


def test_the_check_counts_what_went(scripts, monkeypatch):
    gpu, _ = scripts
    monkeypatch.setattr(gpu, "CHUNK", CHUNK)
    before, after, mask, k, threshold = selected()
    with pytest.raises(AssertionError, match=r"\(20, 21\)"):
        gpu.check(before, after, mask, k + 1, threshold)


def shell(folder, script, timeout=60):
    """Runs steps of gpu.sh with the folders that its main makes."""
    setup = (
        f'source {BENCHMARKS / "gpu.sh"}; out={folder}/out work={folder}/work; mkdir "$out" "$work"; trap finish EXIT'
    )
    return subprocess.run(
        ["bash", "-c", f"{setup}\n{script}"], check=False, capture_output=True, text=True, timeout=timeout
    )


def test_steps_have_limits_and_never_stop_the_script(tmp_path):
    script = """
    start beside 60 bash -c 'echo in the background; sleep 0.5; echo its end'
    step stubborn 1 bash -c 'trap "" TERM; echo I stay; sleep 30 & wait; sleep 30'
    step bad 10 bash -c 'echo no good; exit 3'
    step good 10 echo all well
    await beside
    budget=5
    step late 10 echo never
    exit "$failed"
    """
    done = shell(tmp_path, script)
    assert done.returncode == 1
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert "stubborn: FAILED, stopped at its limit" in log
    assert "bad: FAILED, exit 3" in log
    assert "=== good\nall well\ngood: ok" in log
    assert "=== beside\nin the background\nits end\nbeside: ok" in log
    assert "late: not run, the 5 s are up" in log
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu.log"]
    assert not (tmp_path / "work").exists()


def test_a_script_that_is_told_to_stop_leaves_its_log_and_no_process(tmp_path):
    script = """
    trap 'exit 143' TERM
    start beside 60 bash -c 'echo $$ beside; sleep 60'
    (until grep -q long "$work/long.log" && grep -q beside "$work/beside.log"; do sleep 0.1; done; kill $$) 2>&1 &
    step long 60 bash -c 'echo $$ long; sleep 60'
    """
    done = shell(tmp_path, script)
    assert done.returncode == 143
    words = [line.split() for line in (tmp_path / "out" / "gpu.log").read_text().splitlines()]
    processes = [number for number, *rest in words if rest in (["beside"], ["long"]) and number != "==="]
    assert len(set(processes)) == 2
    wait_for(lambda: not any(running(number) for number in processes))


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)

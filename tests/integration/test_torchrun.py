"""A run of several processes: what they count, choose, train and write together."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

import layercollapse as lc
import processes
from interrupted import outcome

SITES = 4


def network():
    torch.manual_seed(0)
    hidden = [layer for _ in range(SITES - 1) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), *hidden, nn.Linear(8, 2))


def samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def counts(rank, size):
    """The counts and patterns of a part of the batches, and by this process alone of all of them."""
    model, batches = network().eval(), samples()[0].split(8)
    with lc.EntropyProbe(model, patterns=True) as probe:
        for x in batches[rank::size]:
            model(x)
    with lc.EntropyProbe(model, patterns=True, group=dist.new_subgroups(1)[0]) as own:
        for x in batches:
            model(x)
    reports = probe.report(), own.report()
    return [
        [(layer.counts, layer.patterns.hashes, layer.patterns.counts, layer.patterns.rows) for layer in report.layers]
        for report in reports
    ]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_counts_are_those_of_one_process(size):
    for together, alone in processes.run(size, counts, size):
        assert len(together) == SITES
        for ours, theirs in zip(together, alone, strict=True):
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ours, theirs, strict=True))


def differs(rank):
    """What a probe says where one process has seen nothing, or another model."""
    model, said = network().eval(), []
    for other, passes in ((model, rank), (network()[: 5 if rank else 7].eval(), 1)):
        with lc.EntropyProbe(other) as probe:
            for _ in range(passes):
                other(samples()[0])
        with pytest.raises(lc.LayerCollapseError) as error:
            probe.report()
        said.append(str(error.value))
    return said


@pytest.mark.long
def test_processes_that_have_counted_other_things():
    for nothing, other in processes.run(2, differs):
        assert "expected at least one forward pass" in nothing
        assert other.startswith("sites: expected the same")


def whole_run(rank, size, out, options):
    """A run with a part of the data on each process, of which the first evaluates best."""
    model, (x, y) = network(), samples()

    def train(model, checkpoint):
        parallel = nn.parallel.DistributedDataParallel(model) if size > 1 else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for _ in checkpoint.epochs(2, optimizer=optimizer):
            for batch in torch.randperm(len(x)).split(32):
                own = batch[rank::size]
                optimizer.zero_grad()
                nn.functional.cross_entropy(parallel(x[own]), y[own]).backward()
                optimizer.step()

    result = lc.run(
        model,
        train=train,
        evaluate=lambda model: (
            100 * float((model(x).argmax(1) == y).float().mean()) - 5 * rank
        ),  # the first one's counts
        data=list(x.split(8))[rank::size],
        unit="percent",
        steps=2,
        max_drop=100.0,
        out=out,
        **options,
    )
    steps = [(step.sites_collapsed, step.top1_validation, step.entropy) for step in result.record.steps]
    outputs = result.model.eval()(x).detach()
    return steps, model.state_dict(), outputs, result.collapse is not None, result.record.after.top1


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{"strategy": "collapse+prune", "amount": 0.3}, {"strategy": "collapse", "mode": "refit"}]
)
def test_all_processes_choose_and_have_the_same(tmp_path, options):
    (steps, state, outputs, first, top1), *others = processes.run(2, whole_run, 2, str(tmp_path / "run"), options)
    assert first
    assert len(steps) == 3
    assert steps[-1][0] > 0
    for other in others:
        assert other[0] == steps
        assert all(torch.equal(other[1][name], value) for name, value in state.items())
        torch.testing.assert_close(other[2], outputs)
        assert not other[3]
        assert other[4] == top1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"][-1]["sites_collapsed"] == steps[-1][0]
    assert not [path for path in (tmp_path / "run").rglob("*") if ".part" in path.name]


def sharded(rank):
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model)
    x, _ = samples()
    with pytest.raises(lc.LayerCollapseError, match="weights that every process has whole, got sharded ones"):
        lc.run(model, train=lambda model: None, evaluate=lambda model: 50.0, data=[x], out="never")


@pytest.mark.long
def test_sharded_weights_are_for_the_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    processes.run(2, sharded)
    assert not list(tmp_path.iterdir())


def without_data(rank):
    model, data = network(), [] if rank else [samples()[0]]
    with pytest.raises(lc.LayerCollapseError) as error:
        lc.run(model, train=lambda model: None, evaluate=lambda model: 50.0, data=data, out="never")
    return str(error.value)


@pytest.mark.long
def test_data_that_one_process_has_not_is_an_error_of_all():
    first, second = processes.run(2, without_data)
    assert second.startswith("data: expected at least one batch")
    assert first == f"rank 1: {second}"


JOB = [
    "run",
    "--data",
    "digits",
    "--width",
    "4",
    "--epochs",
    "3",
    "--steps",
    "2",
    "--max-drop",
    "50",
    "--strategy",
    "collapse+prune",
    "--resume",
]


def torchrun(folder, *options):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *options,
        "-m",
        "layercollapse",
    ]
    command += [*JOB, "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(parent):
    """The processes that a torchrun has started, by their rank."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/environ") as environment:
                if int(stat.read().rsplit(")", 1)[1].split()[1]) == parent:
                    variables = dict(x.split("=", 1) for x in environment.read().split("\0") if "=" in x)
                    found[variables["RANK"]] = int(pid)
        except (OSError, KeyError):
            continue
    return found


@pytest.mark.long
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_the_main_job_of_two_processes_and_one_that_dies(tmp_path):
    whole = torchrun(tmp_path / "whole")
    said, _ = whole.communicate(timeout=280)
    assert whole.returncode == 0, said
    assert said.count("Before and after") == 1  # one of them talks
    assert lc.load(tmp_path / "whole") is not None
    broken = torchrun(tmp_path / "broken", "--max-restarts=1")
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "broken").glob("checkpoints/training-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(workers(broken.pid)["1"], signal.SIGKILL)
        said, _ = broken.communicate(timeout=280)
    finally:
        broken.kill()
    assert broken.returncode == 0, said
    assert "SIGKILL" in said or "exitcode: -9" in said or "failed" in said, said
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")

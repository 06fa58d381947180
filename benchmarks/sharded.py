"""Prunes a network that FSDP2 shards over 1, 2 and 4 processes: the same masks, bytes over the wire, and seconds.

    python benchmarks/sharded.py                                  # a minute; processes share this machine's cores
    python benchmarks/sharded.py --width 2048 --blocks 24 --ranks 1 2

Every process counts what it gives to torch.distributed inside `Pruner.step` and `state_dict`: sums (all_reduce), and
what ranks compare (all_gather). The gathers are of weights that are not zero, a byte each, for the guard, and of scales
and biases (`full_tensor`); those of FSDP2's forward passes are its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import layercollapse as lc


class Block(nn.Module):
    """``x + W₂ relu(W₁ norm(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x))))


def network(width: int, blocks: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(width) for _ in range(blocks)), nn.Linear(width, 10))


class Sent:
    """Bytes that this process gives to collectives, and how often."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def watch(self, owner: Any, name: str) -> None:
        called = getattr(owner, name)

        def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            given = args[0] if name == "all_gather" else tensor
            size = given.to_local().nbytes if hasattr(given, "to_local") else given.nbytes
            self.bytes[name] = self.bytes.get(name, 0) + size
            self.calls[name] = self.calls.get(name, 0) + 1
            return called(tensor, *args, **kwargs)

        setattr(owner, name, counted)

    def take(self) -> dict[str, tuple[int, int]]:
        taken = {name: (self.calls[name], self.bytes[name]) for name in self.bytes}
        self.bytes, self.calls = {}, {}
        return taken


def digest(state: dict[str, Tensor]) -> str:
    data = b"".join(name.encode() + mask.numpy().tobytes() for name, mask in sorted(state.items()))
    return hashlib.sha256(data).hexdigest()


def work(rank: int, ranks: int, width: int, blocks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model, x = network(width, blocks), torch.randn(16, width, generator=torch.Generator().manual_seed(1))
    if ranks > 1:
        for block in model:
            fully_shard(block)
        fully_shard(model)
    sent, result = Sent(), {}
    for owner, name in ((dist, "all_reduce"), (dist, "all_gather"), (DTensor, "full_tensor")):
        sent.watch(owner, name)
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    pruner, report = lc.Pruner(model, x), probe.report()
    sent.take()
    for rule in ("uniform", "global"):
        start = time.perf_counter()
        pruner.step(report, 0.3, rule)
        result[rule] = {"seconds": time.perf_counter() - start, **sent.take()}
    start = time.perf_counter()
    state = pruner.state_dict()
    result["state_dict"] = {"seconds": time.perf_counter() - start, **sent.take()}
    result["masks"], result["weights"] = digest(state), sum(p.numel() for p in model.parameters())
    result["tensors"] = len(state)
    if rank == 0:
        Path(folder, f"{ranks}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in options.ranks:
            mp.spawn(work, (ranks, options.width, options.blocks, folder), nprocs=ranks)
            results[ranks] = json.loads(Path(folder, f"{ranks}.json").read_text())
    assert len({result["masks"] for result in results.values()}) == 1, "the masks depend on the number of ranks"
    first = next(iter(results.values()))
    print(f"{first['weights']:,} weights, {first['tensors']} tensors pruned; the masks are the same\n")
    print("| ranks | what | seconds | sums: calls, bytes | compared: calls, bytes | gathered: calls, bytes |")
    print("|---|---|---|---|---|---|")
    for ranks, result in results.items():
        for what in ("uniform", "global", "state_dict"):
            row = result[what]
            cells = ("{}, {:,}".format(*row.get(name, (0, 0))) for name in ("all_reduce", "all_gather", "full_tensor"))
            print(f"| {ranks} | {what} | {row['seconds']:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

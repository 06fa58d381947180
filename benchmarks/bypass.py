"""An MLP of 256, 1,024 and 256 neurons of which some hidden ones are on: as it came, and with these in one layer.

    python benchmarks/bypass.py --threads 1

The neurons are proven on over the box of the inputs. Milliseconds are medians of both models in turns; chosen is what
`collapse` takes by itself, which measures again.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn

import layercollapse as lc
from layercollapse.collapse import choice
from layercollapse.measure import environment, in_turns

WIDTH, HIDDEN, BOX = 256, 1024, (-1.0, 1.0)


def row(batch: int, percent: int) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)).eval()
    model[0].bias.data[: HIDDEN * percent // 100] += 50.0
    x = torch.rand(batch, WIDTH) * 2 - 1
    least, chosen = (lc.collapse(model, x, box=BOX, tolerance=1e-3, cost=cost) for cost in ("macs", "latency"))
    with torch.inference_mode():
        torch.testing.assert_close(least.model(x), model(x), rtol=1e-4, atol=1e-3)
        calls = [partial(m, x) for m in (model, least.model)]
        before, after = in_turns(calls, torch.device("cpu"), seconds=2.0, warmup=5, minimum=20)
    macs = [summary.macs // batch for summary in (least.before, least.after)]
    taken = "yes" if any(made.way == choice.CARRIED for made in chosen.regions) else "no"
    return [f"{batch}", f"{percent} %", *(f"{count:,}" for count in macs), f"{before:.3f}", f"{after:.3f}", taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    head = ["batch", "on", "MACs before", "MACs after", "ms before", "ms after", "chosen"]
    print(f"| {' | '.join(head)} |\n|{'---:|' * len(head)}")
    for batch in (64, 1):
        for percent in (0, 10, 25, 50, 75):
            print(f"| {' | '.join(row(batch, percent))} |", flush=True)
    print(environment(torch.device("cpu")))


if __name__ == "__main__":
    main()

"""Kills a run at random times, resumes it each time, and compares what comes of it with a run that nobody touched.

    python benchmarks/interruptions.py --kills 100        # about a quarter of an hour

Every process is ended by SIGKILL after a random part of the time that the whole run takes, and the same command is
given again. In the end the weights and masks of the checkpoints must have the same bytes, and the record the same
steps. The run is one of the command line, whose optimizer has momentum and whose learning rate has a schedule. What is
measured in milliseconds differs, and with it what the collapse decides by time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

JOB = "run --data digits --width 4 --epochs 4 --steps 2 --max-drop 50 --strategy collapse+prune --resume".split()  # noqa: SIM905


def command(folder: Path) -> list[str]:
    """The run, begun or gone on with."""
    return [sys.executable, "-m", "layercollapse", *JOB, "--out", str(folder)]


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same: the checkpoints' bytes, and the record without times."""
    record = json.loads((folder / "run.json").read_text())
    for step in record["steps"]:
        del step["seconds"]
    kept = ("steps", "chosen", "stopped", "dense_top1", "sites")
    files = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    return {**files, **{name: record[name] for name in kept}}


def progress(folder: Path) -> str:
    """How far a run is, for the count of where it was killed."""
    record, training = folder / "run.json", list(folder.glob("checkpoints/training-*"))
    steps = len(json.loads(record.read_text())["steps"]) if record.exists() else 0
    return f"after {steps} steps{', in a training' * bool(training)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        started = time.perf_counter()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        wanted, found, kills, finished = outcome(whole), Counter[str](), 0, 0
        while kills < arguments.kills:
            process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
            try:
                process.wait(chance.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                found[progress(killed)] += 1
                continue
            if process.returncode:
                raise SystemExit(f"a run that was resumed ended with status {process.returncode}")
            check(outcome(killed), wanted)
            finished += 1
            killed = killed.with_name(f"{killed.name}-{finished}")
        subprocess.run(command(killed), check=True, stdout=subprocess.DEVNULL)
        check(outcome(killed), wanted)
    for place, count in sorted(found.items()):
        print(f"killed {place}: {count} times")
    print(f"{kills} kills, {finished + 1} runs finished, each with the bytes of the run that nobody touched")


def check(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare, and end with what differs."""
    if other := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        raise SystemExit(f"expected what a run gives that is not interrupted, got other {', '.join(other)}")


if __name__ == "__main__":
    main()

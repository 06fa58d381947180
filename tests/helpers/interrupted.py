"""A run whose training can be killed in any epoch."""

import json
import random

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import layercollapse as lc

EPOCHS, STEPS = 3, 2


class Killed(BaseException):
    """What nothing catches, like a signal."""


class Job:
    """Trains on shuffled and noisy data, and may be killed in an epoch, counted over all trainings."""

    def __init__(self, kill_in=None):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 6, generator=generator)
        self.data = TensorDataset(x, (x[:, 0] > 0).long())
        self.kill_in, self.epoch, self.seen = kill_in, 0, []

    def model(self):
        torch.manual_seed(0)
        hidden = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.ReLU())]
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), *hidden, nn.Linear(8, 2))

    def train(self, model, checkpoint):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        average = AveragedModel(model)
        for epoch in checkpoint.epochs(EPOCHS, optimizer=optimizer, schedule=schedule, average=average):
            self.seen.append(epoch)
            for x, y in DataLoader(self.data, batch_size=16, shuffle=True):
                if self.epoch == self.kill_in:
                    raise Killed
                optimizer.zero_grad()
                noise = torch.from_numpy(np.random.rand(*x.shape)).float() * random.random()  # noqa: NPY002
                nn.functional.cross_entropy(model(x + noise), y).backward()
                optimizer.step()
                average.update_parameters(model)
            schedule.step()
            self.epoch += 1

    def run(self, out, **options):
        model = self.model()
        x, y = self.data.tensors
        return lc.run(
            model,
            train=options.pop("train", self.train),
            evaluate=lambda model: 100 * float((model(x).argmax(1) == y).float().mean()),
            data=DataLoader(self.data, batch_size=16, shuffle=True),
            unit="percent",
            steps=STEPS,
            max_drop=100.0,
            out=out,
            **{"strategy": "collapse+prune", "amount": 0.3, **options},
        )


def outcome(folder):
    record = json.loads((folder / "run.json").read_text())
    for step in record["steps"]:
        del step["seconds"]
    return record["steps"], {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}

"""The callback of Lightning."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layercollapse as lc

if importlib.util.find_spec("lightning") is None:
    pytest.skip("needs lightning", allow_module_level=True)  # importing it takes five seconds: where a test runs

pytestmark = [pytest.mark.usefixtures("seeded", "one_thread"), pytest.mark.long]


def network():
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.seen = []
            self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            self.seen.append(float((self.net[2].weight != 0).float().mean()))
            return nn.functional.cross_entropy(self(x), y)

        def hidden(self):
            return self.net[0].weight, self.net[2].weight

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    return Module()


def loader():
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)


def train(folder, epochs, **more):
    import lightning.pytorch as lightning

    from layercollapse.integrations.lightning import LayerCollapse

    torch.manual_seed(0)
    callback = LayerCollapse(0.5, rule="uniform", out=folder / "small.v1", collapse={"cost": "macs"})
    saved = lightning.callbacks.ModelCheckpoint(folder / "saved", save_top_k=-1, filename="{epoch}")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[callback, saved],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = network()
    trainer.fit(module, loader(), **more)
    return module, callback, folder / "saved"


def test_prunes_keeps_zeros_collapses_and_resumes(tmp_path):
    module, callback, saved = train(tmp_path / "one", 3)
    assert [step.density for step in callback.pruned] == [0.5, 0.25]
    assert [float((weight != 0).float().mean()) for weight in module.hidden()] == [0.25, 0.25]
    assert module.seen == [1.0] * 4 + [0.5] * 4 + [0.25] * 4
    assert len(callback.reports) == 3
    x = torch.randn(5, 4)
    module.eval()
    for small in (callback.result.model, lc.load(tmp_path / "one" / "small.v1")):
        torch.testing.assert_close(small(x), module(x))

    more = {"ckpt_path": saved / "epoch=1.ckpt"}
    again, resumed, _ = train(tmp_path / "two", 3, **more)
    assert resumed.pruner.masks().keys() == callback.pruner.masks().keys()
    assert all(torch.equal(mask, callback.pruner.masks()[name]) for name, mask in resumed.pruner.masks().items())
    assert [float((weight != 0).float().mean()) for weight in again.hidden()] == [0.25, 0.25]
    assert len(resumed.pruned) <= 1


def test_data_and_example_of_the_user(tmp_path):
    import lightning.pytorch as lightning

    from layercollapse.integrations.lightning import LayerCollapse

    module = network()
    module.example_input_array = torch.randn(3, 4)
    data = [torch.randn(8, 4)]
    callback = LayerCollapse(0.5, every=2, steps=1, data=data, collapse={"cost": "macs"})
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_epochs=5, callbacks=[callback], enable_checkpointing=False, default_root_dir=tmp_path, **options
    )
    trainer.fit(module, loader())
    assert [step.density for step in callback.pruned] == [0.5]
    assert callback.result.samples == 8
    assert callback.reports[0].layers[0].counts.sum(1).tolist() == [8] * 16

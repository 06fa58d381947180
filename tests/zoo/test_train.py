import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.prune.pruner import Pruner
from layercollapse.zoo import data, models
from layercollapse.zoo.data.split import Split
from layercollapse.zoo.train import accuracy, fit, logits


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def mlp(width=4):
    torch.manual_seed(0)
    return models.build("mlp", image_size=8, width=width)


def test_training_learns(digits):
    model = mlp()
    fit(model, digits.train, epochs=8)
    assert accuracy(model, digits.test) > 85


def test_training_is_repeatable(digits):
    def weights():
        model = mlp()
        fit(model, digits.train, epochs=1)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(), weights())


def test_pruned_weights_stay_zero(digits):
    model = mlp()
    pruner = Pruner(model, (digits.train.inputs[:2],))
    masks = {name: torch.rand_like(parameter) < 0.5 for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name in pruner.masks():
            model.get_parameter(name).mul_(masks[name])
    pruner = Pruner(model, (digits.train.inputs[:2],))  # takes the zeros for pruned
    fit(model, digits.train, epochs=1, pruner=pruner)
    assert pruner.masks()
    for name in pruner.masks():
        weight = model.get_parameter(name)
        assert torch.equal(weight != 0, masks[name])


def test_progress_is_called_after_every_step(digits):
    calls = []
    fit(mlp(), digits.train, epochs=3, batch_size=500, progress=lambda: calls.append(1))
    assert len(calls) == 3 * 2  # 1,258 images


def test_half_of_the_images_are_mirrored():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(x[:, 0, 0, 0])
            return super().forward(x.flatten(1))

    images = torch.zeros(400, 1, 1, 2)
    images[..., 0] = 1
    torch.manual_seed(0)
    split = Split(images, torch.zeros(400, dtype=torch.int64))
    for flip, low, high in ((False, 400, 400), (True, 150, 250)):
        fit(Watched(2, 3), split, epochs=1, batch_size=100, flip=flip)
        assert low <= int(torch.cat(seen).sum()) <= high
        seen.clear()
    with pytest.raises(
        LayerCollapseError, match=r"flip: expected batches of images \(N, C, H, W\), got \(9, 2\) float32"
    ):
        fit(nn.Linear(2, 3), Split(torch.zeros(9, 2), torch.zeros(9, dtype=torch.int64)), epochs=1, flip=True)


def test_outputs_are_logits_whatever_they_come_in():
    class Net(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def forward(self, x, mask=None):
            found = x * 2 if mask is None else x * mask
            return {"plain": found, "tuple": (found, x[0]), "dict": {"hidden": x[0], "logits": found}}[self.kind]

    x = torch.eye(3)
    for kind in ("plain", "tuple", "dict"):
        assert torch.equal(logits(Net(kind), x), 2 * x)
        assert torch.equal(logits(Net(kind), {"x": x, "mask": 3 * x, "unknown": x}), 3 * x)
    with pytest.raises(LayerCollapseError, match=r"model: expected logits \(N, classes\), got \(3,\) float32"):
        logits(Net("plain"), x[0])


def test_accuracy_by_hand():
    class Parity(nn.Module):
        def forward(self, x):
            assert not self.training
            return torch.cat([x, 1 - x], 1)

    images, labels = torch.tensor([[0.0], [1.0], [0.0], [1.0]]), torch.tensor([1, 0, 1, 1])
    model = Parity()
    assert accuracy(model, Split(images, labels)) == 75.0
    assert model.training


def test_divergence_is_an_error(digits):
    with pytest.raises(LayerCollapseError, match=r"lr: expected training to converge, got loss .* less than 1e\+20"):
        fit(mlp(), digits.train, epochs=1, lr=1e20)


@pytest.mark.parametrize("function", [fit, accuracy])
def test_empty_split(function):
    empty = Split(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64))
    with pytest.raises(LayerCollapseError, match="split: expected at least one sample"):
        function(mlp(), empty, **({"epochs": 1} if function is fit else {}))


def test_no_epochs(digits):
    with pytest.raises(LayerCollapseError, match="epochs: expected at least 1, got 0"):
        fit(mlp(), digits.train, epochs=0)

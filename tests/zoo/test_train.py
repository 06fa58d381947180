import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.prune.pruner import Pruner
from layercollapse.zoo import data, models
from layercollapse.zoo.data.split import Split
from layercollapse.zoo.train import accuracy, fit


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
    pruner = Pruner(model, (digits.train.images[:2],))
    masks = {name: torch.rand_like(parameter) < 0.5 for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name in pruner.masks():
            model.get_parameter(name).mul_(masks[name])
    pruner = Pruner(model, (digits.train.images[:2],))  # takes the zeros for pruned
    fit(model, digits.train, epochs=1, pruner=pruner)
    assert pruner.masks()
    for name in pruner.masks():
        weight = model.get_parameter(name)
        assert torch.equal(weight != 0, masks[name])


def test_progress_is_called_after_every_step(digits):
    calls = []
    fit(mlp(), digits.train, epochs=3, batch_size=500, progress=lambda: calls.append(1))
    assert len(calls) == 3 * 2  # 1,258 images


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
    with pytest.raises(LayerCollapseError, match="split: expected at least one image"):
        function(mlp(), empty, **({"epochs": 1} if function is fit else {}))


def test_no_epochs(digits):
    with pytest.raises(LayerCollapseError, match="epochs: expected at least 1, got 0"):
        fit(mlp(), digits.train, epochs=0)

from pathlib import Path

import pytest
import torch
from torch import nn

import layercollapse as lc
from networks import Small


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "new" / "folder"
    x = torch.randn(5, 1, 9, 9)
    result = lc.collapse(Small().eval(), x, None)
    result.save(folder)
    return folder, result.model, x

"""Networks of torchvision by name, `torchvision:resnet50`: with fresh weights, as many classes as the data have."""

from __future__ import annotations

from typing import Any

from torch import nn

from layercollapse.errors import LayerCollapseError, require
from layercollapse.graph.export import reason
from layercollapse.zoo.models.wanted import Built, Wanted

COLORS = 3  # channels that all of them read


def build(name: str, wanted: Wanted) -> Built:
    """A network for classes.

    Raises:
        LayerCollapseError: torchvision does not import, has no such network, or does not build it so.
    """
    spec = f"torchvision:{name}"
    wanted.without_width(spec)
    channels, height, width = wanted.images(spec)
    models = imported("torchvision.models", "torchvision")
    known = models.list_models(models)
    if name not in known:
        near = [other for other in known if name.split("_", maxsplit=1)[0].rstrip("0123456789") in other]
        raise LayerCollapseError(f"model: expected one of torchvision's, as {', '.join(near or known)}, got {name!r}")
    args: dict[str, Any] = {"num_classes": wanted.num_classes}
    if name.startswith("vit_"):  # the others take images of any size
        if height != width:
            raise LayerCollapseError(f"input: expected square images for {spec}, got {height} by {width}")
        args["image_size"] = height
    try:
        model = models.get_model(name, weights=None, **{**args, **wanted.args})
    except Exception as error:
        raise LayerCollapseError(f"model: {spec} stopped with {reason(error)}") from error
    return Built(model if channels == COLORS else with_channels(model, channels))


def with_channels(model: nn.Module, channels: int) -> nn.Module:
    """The model, with its first convolution of three channels in another number of them.

    Raises:
        LayerCollapseError: it has none.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == COLORS and module.groups == 1:
            new = nn.Conv2d(
                channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                bias=module.bias is not None,
                padding_mode=module.padding_mode,
            )
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, new)
            return model
    raise LayerCollapseError(f"input: expected {COLORS} channels, got {channels}, and no convolution to replace")


def imported(module: str, package: str) -> Any:
    """A module of a package that may be installed for another torch.

    Raises:
        LayerCollapseError: it is not installed, or does not import; the message says what to install.
    """
    try:
        return require(module, "vision")
    except LayerCollapseError:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise LayerCollapseError(
            f"model: {package} is installed and does not import beside this torch ({said}): install torchvision from "
            "where torch came from"
        ) from error

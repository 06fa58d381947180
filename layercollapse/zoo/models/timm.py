"""Networks of timm by name, `timm:resnet18`: with fresh weights, as many classes as the data have."""

from __future__ import annotations

from typing import Any

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import reason
from layercollapse.zoo.models.torchvision import imported
from layercollapse.zoo.models.wanted import Built, Wanted


def build(name: str, wanted: Wanted) -> Built:
    """A network for classes, for images of the data's channels and size.

    Raises:
        LayerCollapseError: timm does not import, has no such network, or does not build it so.
    """
    spec = f"timm:{name}"
    wanted.without_width(spec)
    channels, height, width = wanted.images(spec)
    timm = imported("timm", "timm")
    if not timm.is_model(name):
        near = timm.list_models(f"{name[:4]}*")[:12]
        raise LayerCollapseError(f"model: expected one of timm.list_models(){_as(near)}, got {name!r}")
    args: dict[str, Any] = {"num_classes": wanted.num_classes, "in_chans": channels}
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:  # transformers, whose position embeddings have a size
        args["img_size"] = (height, width)
    try:
        return Built(timm.create_model(name, pretrained=False, **{**args, **wanted.args}))
    except Exception as error:
        raise LayerCollapseError(f"model: {spec} stopped with {reason(error)}") from error


def shape(name: str) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that a network was made for; None if timm does not say."""
    cfg = imported("timm", "timm").get_pretrained_cfg(name)
    return None if cfg is None else tuple(cfg.input_size)


def _as(names: list[str]) -> str:
    return f", as {', '.join(names)}" if names else ""

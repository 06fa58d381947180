"""What a collapsed model was called with when it was made: which optional arguments it had, and which it had not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError


class Arguments(nn.Module):
    """A check of the optional arguments of a collapsed model, whose graph is that of the example, without the others.

    Args:
        given: arguments that the original may do without, and that this model must have.
        without: arguments that the example did not have -> their defaults in the original.
    """

    _is_impure = True  # nothing reads what it gives, and torch.fx is not to drop it

    def __init__(self, given: Sequence[str], without: Mapping[str, Any]) -> None:
        super().__init__()
        self.given, self.without = [str(name) for name in given], dict(without)

    def forward(self, given: Sequence[Any], without: Sequence[Any]) -> None:
        """Raises a LayerCollapseError unless all of the first are there, and the second as they are by default."""
        for name, value in zip(self.given, given, strict=True):
            if value is None:
                raise LayerCollapseError(
                    f"{name}: expected it, as in the example inputs that this collapsed model was made with, got None"
                )
        for (name, default), value in zip(self.without.items(), without, strict=True):
            if value is not default and (isinstance(value, Tensor) or value != default):
                came = "a tensor" if isinstance(value, Tensor) else repr(value)
                raise LayerCollapseError(
                    f"{name}: this collapsed model was made without it, for its default {default!r}, got {came}; "
                    f"collapse it again with example inputs that have {name!r}"
                )

    def extra_repr(self) -> str:
        return f"{self.given}, without={self.without}"


def needed_and_refused(model: nn.Module) -> tuple[set[str], set[str]]:
    """The arguments that a collapsed model must have though they have a default, and those that it takes no values for.

    None of any other model.
    """
    checks = [module for module in model.children() if isinstance(module, Arguments)]
    return {n for check in checks for n in check.given}, {n for check in checks for n in check.without}

"""Remove whole layers from trained rectifier networks.

Measure the sign entropy of every rectifier (`EntropyProbe`), prune by it (`Pruner`), and turn what became linear into
a shallower dense model (`collapse`); `run` does all three. `ops` holds the two kernels.
"""

import importlib
from typing import TYPE_CHECKING, Any

from layercollapse import ops
from layercollapse._version import __version__
from layercollapse.compiler.backend.serialize import load
from layercollapse.compiler.driver.api import collapse
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.entropy.probe import EntropyProbe, EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.capture import capture
from layercollapse.pipeline.api import run
from layercollapse.pipeline.progress import ProgressBar
from layercollapse.prune.least_squares import fit_lines
from layercollapse.prune.linearize import linearize
from layercollapse.prune.pruner import Pruner
from layercollapse.report.inspection import Inspection, inspect

if TYPE_CHECKING:
    from layercollapse.zoo import data, models, train

__all__ = [
    "CollapseResult",
    "EntropyProbe",
    "EntropyReport",
    "Inspection",
    "LayerCollapseError",
    "ProgressBar",
    "Pruner",
    "__version__",
    "capture",
    "collapse",
    "data",
    "fit_lines",
    "inspect",
    "linearize",
    "load",
    "models",
    "ops",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    """The networks, data and training recipe of the command line, which nothing else needs."""
    if name in ("data", "models", "train"):
        return importlib.import_module(f"layercollapse.zoo.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

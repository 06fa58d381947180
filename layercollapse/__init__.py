"""Remove whole layers from trained rectifier networks.

Measure the sign entropy of every rectifier (`EntropyProbe`), prune by it (`Pruner`), and turn what became linear into
a shallower dense model (`collapse`); `run` does all three. `ops` holds the two kernels.
"""

from layercollapse import ops
from layercollapse._version import __version__
from layercollapse.compiler.backend.serialize import load
from layercollapse.compiler.driver.api import collapse
from layercollapse.compiler.driver.result import CollapseResult
from layercollapse.entropy import EntropyProbe, EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph import capture
from layercollapse.prune import Pruner
from layercollapse.run import run

__all__ = [
    "CollapseResult",
    "EntropyProbe",
    "EntropyReport",
    "LayerCollapseError",
    "Pruner",
    "__version__",
    "capture",
    "collapse",
    "load",
    "ops",
    "run",
]

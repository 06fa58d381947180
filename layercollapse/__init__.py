"""Remove whole layers from trained rectifier networks."""

from layercollapse._version import __version__
from layercollapse.errors import LayerCollapseError

__all__ = ["LayerCollapseError", "__version__"]

"""The compiler from a pruned network to a shallower dense one.

A model goes through it from the left to the right: `frontend` (graph to records), `analysis` (what is known of them),
`passes` (rewrites that keep the outputs), `tuning` (which variant is the fastest), `backend` (records to modules and
files). `ir` is what they share, and `driver` what calls them.
"""

from layercollapse.compiler.analysis.cost import Summary
from layercollapse.compiler.backend.serialize import load, save
from layercollapse.compiler.driver.api import collapse
from layercollapse.compiler.driver.result import CollapseResult, SiteResult
from layercollapse.graph.agreement import Agreement, compare

__all__ = ["Agreement", "CollapseResult", "SiteResult", "Summary", "collapse", "compare", "load", "save"]

"""Where the checkout is, for tests of what is no part of the package. `pyproject.toml` puts this folder on the path."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

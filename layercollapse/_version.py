"""The version, in this one place: pyproject.toml and `layercollapse.__version__` read it."""

__version__ = "0.1.0"

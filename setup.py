"""Build script: declares the packages, whose two roots (`layercollapse/` and `kernels/`) pyproject cannot map."""

from setuptools import setup

setup(
    packages=[
        "layercollapse",
        "layercollapse.collapse",
        "layercollapse.data",
        "layercollapse.models",
        "layercollapse.kernels",
    ],
    package_dir={"layercollapse.kernels": "kernels"},
)

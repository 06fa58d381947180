"""Build script: the packages, whose three roots pyproject cannot map, and the C++ core.

The C++ core is optional: without GCC or Clang the package installs and runs on the reference, and
``layercollapse.ops.backends()`` says so. Portable: newer instruction sets are chosen at run time.
"""

import sys
from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# Apple's compiler has no OpenMP: one thread there.
openmp = [] if sys.platform == "darwin" else ["-fopenmp"]

core = Pybind11Extension(
    "layercollapse_core._core",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h") + glob("csrc/*.inl")),
    cxx_std=17,
    extra_compile_args=["-O3", *openmp],
    extra_link_args=openmp,
    optional=True,
)

setup(
    packages=[
        "layercollapse",
        "layercollapse.collapse",
        "layercollapse.data",
        "layercollapse.models",
        "layercollapse.kernels",
        "layercollapse_core",
    ],
    package_dir={"layercollapse.kernels": "kernels", "layercollapse_core": "csrc/python"},
    package_data={"layercollapse_core": ["_core.pyi"]},
    ext_modules=[core],
)

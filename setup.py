"""Build script: the packages, whose three roots pyproject cannot map, the C++ core, and the CUDA library.

The core comes twice from the same objects: as a module of Python, and as a plain shared library with the C functions of
csrc/python/include/layercollapse.h, for programs in C and C++. The CUDA library has functions of that header alone.

The C++ core is optional: without GCC or Clang the package installs and runs on the reference, and
``layercollapse.ops.backends()`` says so. Portable: newer instruction sets are chosen at run time.

The CUDA library is built where nvcc is found; it needs no torch, no driver and no GPU. LAYERCOLLAPSE_CUDA=0 leaves it
out, =1 makes it an error if it cannot be built. TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") chooses the architectures, as for
torch's own extensions; else they are those below and, as PTX, later ones. One that nvcc does not know is left out, and
the log says so (pip shows it with -v).
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import Extension, find_packages, setup
from setuptools.errors import CompileError

# Apple's compiler has no OpenMP: one thread there.
openmp = [] if sys.platform == "darwin" else ["-fopenmp"]

core = Pybind11Extension(
    "layercollapse_core._core",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/*.inl")),
    cxx_std=17,
    extra_compile_args=["-O3", *openmp],
    extra_link_args=openmp,
    optional=True,
)

# The same objects but for the module's own, linked once more (BuildExt).
cpu = Extension("layercollapse_core._cpu", [], optional=True)

ARCHITECTURES = "8.0 9.0 10.0+PTX"
wanted = os.environ.get("LAYERCOLLAPSE_CUDA", "auto")
if wanted not in ("auto", "0", "1"):
    sys.exit(f"LAYERCOLLAPSE_CUDA: expected auto, 0 or 1, got {wanted!r}")

# A plain shared library, which layercollapse.kernels.cuda loads by ctypes.
cuda = Extension(
    "layercollapse_core._cuda",
    sorted(glob("csrc/cuda/*.cu")),
    depends=sorted(glob("csrc/cuda/*.cuh") + glob("csrc/**/*.h", recursive=True)),
    optional=wanted == "auto",
)


def find_nvcc():
    """Path of nvcc: under CUDA_HOME, on the path, or where NVIDIA installs it; None if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)


def architectures(nvcc):
    """Options of nvcc for the architectures asked for that it knows; CompileError if it knows none."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split() or ARCHITECTURES.split()
    if asked == ["native"]:
        return ["-arch=native"]
    known = subprocess.run([nvcc, "--list-gpu-code"], check=False, capture_output=True, text=True).stdout.split()
    binary, intermediate = [], []
    for name in asked:
        arch = name.removesuffix("+PTX").replace(".", "")
        if not re.fullmatch(r"\d+[af]?", arch):
            sys.exit(f"TORCH_CUDA_ARCH_LIST: expected native or numbers like 9.0 and 9.0+PTX, got {name!r}")
        if f"sm_{arch}" in known:
            binary.append(arch)
            intermediate += [arch] * name.endswith("+PTX")
        else:
            print(f"warning: {nvcc} does not know {name}, which is left out; it knows {' '.join(known)}", flush=True)
    if not binary:
        raise CompileError(f"{nvcc}: expected one that knows any of {' '.join(asked)}, got one for {' '.join(known)}")
    if not intermediate and any(name.endswith("+PTX") for name in asked):
        intermediate = binary[-1:]  # later GPUs still need some
    options = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in binary]
    return options + [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in intermediate]


class BuildExt(build_ext):
    """Compile .cu sources with nvcc, everything else as usual."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = None  # the second is linked from the objects of the first

    def build_extension(self, ext):
        if ext is core:
            super().build_extension(ext)
        elif ext is cpu:
            self.link_core()
        else:
            self.build_cuda(ext)

    def link_core(self):
        sources = [source for source in core.sources if not source.startswith("csrc/module")]
        objects = self.compiler.object_filenames(sources, output_dir=self.build_temp)
        if not all(map(os.path.exists, objects)):
            raise CompileError("the C++ core was not compiled")
        target = self.get_ext_fullpath(cpu.name)
        soname = [f"-Wl,-soname,{Path(target).name}"] if sys.platform == "linux" else []
        self.compiler.link_shared_object(
            objects, target, extra_postargs=[*openmp, *soname], build_temp=self.build_temp, target_lang="c++"
        )

    def build_cuda(self, ext):
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError("nvcc: expected it under CUDA_HOME, on the path or in /usr/local/cuda/bin, got none")
        codes = architectures(nvcc)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [nvcc, "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v", "--threads", "2"]
        command += ["--cudart", "static", "-Xcompiler", "-fPIC", "-shared", *codes, "-o", str(target), *ext.sources]
        print(" ".join(command), flush=True)
        if subprocess.run(command, check=False).returncode:
            raise CompileError(f"{nvcc} failed")


with_cuda = wanted == "1" or (wanted == "auto" and find_nvcc() is not None)
if wanted == "auto" and not with_cuda:
    print("LAYERCOLLAPSE_CUDA=auto: no nvcc found, the CUDA library is not built", flush=True)

setup(
    packages=[
        *find_packages(include=["layercollapse", "layercollapse.*"]),
        "layercollapse.kernels",
        "layercollapse_core",
    ],
    package_dir={"layercollapse.kernels": "kernels", "layercollapse_core": "csrc/python"},
    ext_modules=[core, cpu] + [cuda] * with_cuda,
    cmdclass={"build_ext": BuildExt},
)

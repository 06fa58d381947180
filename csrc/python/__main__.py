"""What a compiler needs to use the ops from C and C++: python -m layercollapse_core --cflags --libs."""

from __future__ import annotations

import argparse

from layercollapse_core.installed import cmake_dir, include_dir, library


def main() -> None:
    """Print the options asked for, in one line."""
    parser = argparse.ArgumentParser(prog="python -m layercollapse_core", description=__doc__)
    parser.add_argument("--cflags", action="store_true", help="options for compiling")
    parser.add_argument("--libs", action="store_true", help="options for linking with the library of the CPU")
    parser.add_argument("--libs-cuda", action="store_true", help="options for linking with the library of CUDA")
    parser.add_argument("--cmakedir", action="store_true", help="folder of layercollapse-config.cmake")
    arguments = parser.parse_args()
    options = [f"-I{include_dir()}"] if arguments.cflags else []
    libraries = [library("cpu")] if arguments.libs else []
    libraries += [library("cuda")] if arguments.libs_cuda else []
    for path in libraries:
        options += [str(path), f"-Wl,-rpath,{path.parent}"]
    print(*options, *([cmake_dir()] if arguments.cmakedir else []))


if __name__ == "__main__":
    main()

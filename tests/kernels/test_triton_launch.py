"""A launch that is made again: with the compiled variant, its constants in the order of the kernel's parameters."""

from types import SimpleNamespace

import pytest

from layercollapse.kernels.triton_launch import Launch


class Kernel:
    """Triton's interface as far as a launch uses it; writes down what it is asked for."""

    arg_names = ("x_ptr", "count", "FIRST", "SECOND")

    def __init__(self, compiled):
        self.log, self.compiled = [], compiled

    def __getitem__(self, grid):
        def run(*arguments, **keywords):
            self.log.append(("jit", grid, arguments, keywords))
            return self.compiled

        return run


def test_the_compiled_kernel_is_launched_again():
    log = []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *arguments: log.append((grid, arguments))

    kernel = Kernel(Compiled())
    launch = Launch(kernel, 7, {"SECOND": 2, "FIRST": 1}, num_warps=4)
    for number in range(3):
        launch(f"x{number}", number)
    assert kernel.log == [("jit", (7,), ("x0", 0), {"SECOND": 2, "FIRST": 1, "num_warps": 4})]
    assert log == [((7, 1, 1), ("x1", 1, 1, 2)), ((7, 1, 1), ("x2", 2, 1, 2))]


def test_the_interpreter_compiles_nothing():
    kernel = Kernel(None)
    launch = Launch(kernel, 7, {"FIRST": 1, "SECOND": 2})
    launch("x", 0)
    launch("x", 1)
    assert [call[2] for call in kernel.log] == [("x", 0), ("x", 1)]


def test_what_triton_compiles_takes_them():
    pytest.importorskip("triton")
    from triton.compiler.compiler import CompiledKernel

    launched = []
    kernel = SimpleNamespace(
        _init_handles=lambda: None,
        launch_metadata=lambda *_: None,
        run=lambda *arguments: launched.append(arguments),
        function="function",
        packed_metadata="metadata",
    )
    CompiledKernel.__getitem__(kernel, (7, 1, 1))("x", 1, 2, stream="stream")
    assert launched[0][:6] == (7, 1, 1, "stream", "function", "metadata")
    assert launched[0][-3:] == ("x", 1, 2)

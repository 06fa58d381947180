"""Launches of Triton's kernels that are made again and again with arguments of the same kinds."""

from __future__ import annotations

from typing import Any


class Launch:
    """A launch that finds its variant of the kernel once.

    At each launch Triton looks at every argument for the variant that fits, and at every global that the kernel was
    compiled with: for the kernels of `masked_topk_` 30 us, where what was compiled takes 3. Only for arguments that
    never call for another variant: integers that stay, and pointers of one type that are always, or never, multiples
    of 16.

    Args:
        kernel: compiled by Triton, with its constants as the last parameters.
        programs: how many, along one axis.
        constants: by parameter.
        options: of the compilation.
    """

    def __init__(self, kernel: Any, programs: int, constants: dict[str, Any], **options: int) -> None:
        self._kernel, self._programs = kernel, programs
        self._constants, self._options = constants, options
        self._launch: Any = None
        self._last: list[Any] = []

    def __call__(self, *arguments: Any) -> None:
        """Launch on the current stream of the current device, which is always the same device."""
        if self._launch is not None:
            self._launch(*arguments, *self._last)
            return
        compiled = self._kernel[(self._programs,)](*arguments, **self._constants, **self._options)
        if compiled is not None:  # the interpreter compiles nothing
            self._last = [self._constants[name] for name in self._kernel.arg_names[len(arguments) :]]
            self._launch = compiled[(self._programs, 1, 1)]

"""What all packages share and that knows nothing of networks: files, modes, devices, tensors, timing."""

from importlib.util import find_spec

# The first module that is imported. In a checkout that is not installed, the kernels and the core are in other folders.
if find_spec("layercollapse.kernels") is None:
    raise ModuleNotFoundError(
        "layercollapse: expected an installed package, got a plain checkout: install it first: pip install -e ."
    )

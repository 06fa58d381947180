"""Names of a model's modules and tensors as names that the emitted module may have: the one place where they change."""

from __future__ import annotations

import keyword
import re
import unicodedata

from torch import fx, nn

# What a GraphModule has and an ordinary module has not.
_TAKEN = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))
_ESCAPED = re.compile(r"_x[0-9a-f]+_")


def identifier(path: str) -> str:
    """A dotted path whose parts may be attributes of a `GraphModule`; different paths stay different.

    Most names stay as they are. A character that no attribute has becomes its code point (``up-1`` is
    ``up_x2d_1``), and a name that Python or a GraphModule has itself gets an underscore more: the ``in`` of a
    ModuleDict is ``in_``, and so ``in_`` is ``in__``. So does the first part where it is ``self``: the node that calls
    it would hide the module that the forward of a GraphModule is of.
    """
    first, *rest = path.split(".")
    first = f"{first}_" if first.rstrip("_") == "self" else _attribute(first)
    return ".".join([first, *map(_attribute, rest)])


def _attribute(part: str) -> str:
    bare = part.rstrip("_")
    if keyword.iskeyword(bare) or bare in _TAKEN:
        return part + "_"
    # Python takes names for the same that differ in compatibility characters alone, and files have none with "__".
    plain = part.replace("_", "a").isalnum() and unicodedata.normalize("NFKC", part) == part
    if plain and not part.startswith("__") and not _ESCAPED.search(part):
        return part
    return "".join(_character(part, at) for at in range(len(part)))


def _character(part: str, at: int) -> str:
    """One character, escaped where it is none of a name, or would be read as the beginning of an escape."""
    character = part[at]
    literal = (
        at > 0 and part[at + 1 : at + 2] != "x" if character == "_" else character.isascii() and character.isalnum()
    )
    return character if literal else f"_x{ord(character):x}_"

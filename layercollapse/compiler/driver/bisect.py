"""Which layers stay as they came where algebra that is exact misses the tolerance by rounding, and what is said of it.

Merged weights are rounded once more, and sums come in another order: outputs as large as 1e5, weights of 1e6 and 1e-6
in sequence, constants that nearly overflow, or half precision, and the outputs differ. Most layers do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.ir.graph import Net, source
from layercollapse.compiler.ir.records import Affine
from layercollapse.compiler.passes.context import Group, Omitted
from layercollapse.compiler.tuning.regions import regions
from layercollapse.compiler.tuning.variants import MERGES, Variant

Unit = TypeVar("Unit")
Found = TypeVar("Found")  # how a network that was tried compares with the model


@dataclass(frozen=True)
class Plan:
    """What is not done to a network.

    Attributes:
        untouched: captured nodes that keep their operation; see `lower`.
        left_out: the passes that are left out at a node.
    """

    untouched: frozenset[str] = frozenset()
    left_out: Omitted = lambda name: frozenset()


def unmerged(name: str) -> frozenset[Group]:
    """No pass anywhere that merges layers or trims them."""
    return MERGES


def unmerged_at(nodes: Iterable[str]) -> Omitted:
    """None of these passes at some nodes."""
    names = frozenset(nodes)
    return lambda name: MERGES if name in names else frozenset()


def merging(every: Net, plain: Net) -> list[str]:
    """The nodes of the layers that merge or trim: those in the regions in which two variants differ."""
    names = frozenset[str]().union(*(region.names for region in regions({Variant.ALL: every, Variant.UNMERGED: plain})))
    return [node.name for node, _ in plain.records(Affine) if node.name in names]


@dataclass
class Trials:
    """Networks that are still tried: a ResNet-50 takes 2 s each.

    Attributes:
        left: how many.
    """

    left: int

    def harmless(
        self,
        units: Sequence[Unit],
        known: Found,
        tried: Callable[[list[Unit]], Found],
        keeps: Callable[[Found], bool],
    ) -> tuple[list[Unit], list[tuple[list[Unit], Found]]]:
        """As many units as keep the tolerance together, found by halves, the larger ones first.

        One in n that does not takes 2 log₂ n trials at most. Without trials left, what is not known to keep the
        tolerance is taken to miss it.

        Args:
            units: what may be taken; none of them keeps the tolerance.
            known: what was found with all of them.
            tried: finds out with some.
            keeps: whether what was found keeps the tolerance.

        Returns:
            These units, and blocks of the others with what was found with the block.
        """
        taken: list[Unit] = []
        missed: list[tuple[list[Unit], Found]] = []
        blocks = [(list(units), known)] if units else []
        while blocks:
            block, by = blocks.pop(0)
            if len(block) == 1 or self.left <= 0:
                missed.append((block, by))
                continue
            halves = [block[: len(block) // 2], block[len(block) // 2 :]]
            for index, half in enumerate(halves):
                # What is left of a block that missed misses, where the rest of it has been taken.
                if index and halves[0][0] in taken:
                    blocks.append((half, by))
                    continue
                self.left -= 1
                outcome = tried([*taken, *half])
                if keeps(outcome):
                    taken += half
                else:
                    blocks.append((half, outcome))
        return taken, missed


def as_they_came(blocks: Iterable[tuple[list[str], str]], names: Mapping[str, str]) -> Iterator[Kept]:
    """What is said of captured nodes that keep their operation, in blocks, each with what it changed.

    Args:
        blocks: nodes, and by how much the outputs missed the tolerance with them (`Agreement.miss`).
        names: what the nodes are called.
    """
    for block, miss in blocks:
        them = "it" if len(block) == 1 else f"these {len(block)}"
        reason = f"left as it came: folding or merging {them} changes the outputs by {miss}"
        yield from (Kept((names[node],), reason) for node in block)


def not_merged(blocks: Iterable[tuple[list[str], str]], plain: Net, units: Collection[str]) -> Iterator[Kept]:
    """What is said of layers that do not merge, of all that would: the pairs that each is in, or the layer alone."""
    nodes = {node.name: node for node, _ in plain.records(Affine) if node.name in units}
    for block, miss in blocks:
        for node in map(nodes.__getitem__, block):
            around = [(source(node), node), *((node, user) for user in node.users)]
            pairs = [(str(a.target), str(b.target)) for a, b in around if a.name in nodes and b.name in nodes]
            yield from (Kept(pair, f"merging them changes the outputs by {miss}") for pair in pairs)
            if not pairs:
                reason = f"not merged or trimmed, which changes the outputs by {miss}"
                yield Kept((str(node.target),), reason)

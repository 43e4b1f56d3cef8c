"""The prefix tree of plans: plans that agree on their first k steps share one node at depth k."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tmpdiff_bench.plan import PrecisionPlan


@dataclass(eq=False, slots=True)
class Node:
    """The state after `depth` steps, the last of them at `level`; the root is the noise."""

    depth: int
    level: str
    parent: Node | None
    children: dict[str, Node] = field(default_factory=dict)

    def child(self, level: str) -> Node:
        """The node one step on, made where it is not there."""
        if level not in self.children:
            self.children[level] = Node(self.depth + 1, level, self)
        return self.children[level]

    def path(self) -> Iterator[Node]:
        """The node and its ancestors, the root last."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


def root() -> Node:
    """A tree without plans."""
    return Node(0, "", None)


def grow(tree: Node, plan: PrecisionPlan) -> Node:
    """The leaf of a plan, its missing nodes added to the tree."""
    node = tree
    for level in plan:
        node = node.child(level)
    return node


@dataclass(frozen=True, eq=False)
class Work:
    """The part of a tree that has to be computed to get some leaves: `children` of each node that
    something is computed from, and `starts`, those of them whose states are at hand.
    """

    steps: int
    children: dict[Node, list[Node]]
    starts: list[Node]
    _widths: dict[Node, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, leaves: Iterable[Node], at_hand: Container[Node], steps: int) -> Work:
        """What leads from the nodes at hand (the root among them) to leaves."""
        starts: dict[Node, None] = {}
        children: dict[Node, list[Node]] = {}
        for leaf in leaves:
            for node in leaf.path():
                if node in at_hand:
                    if node is not leaf:
                        starts[node] = None
                    break
                assert node.parent is not None, "the root is at hand"
                siblings = children.setdefault(node.parent, [])
                if node in siblings:
                    break
                siblings.append(node)
        return cls(steps, children, list(starts))

    def leaves(self, node: Node) -> Iterator[Node]:
        """The nodes below, or the node itself, from which nothing is computed."""
        if node not in self.children:
            yield node
        for child in self.children.get(node, ()):
            yield from self.leaves(child)

    def widths(self, node: Node) -> list[int]:
        """Number of the node's descendants to compute, itself counted, from its depth on."""
        if node not in self._widths:
            below = [self.widths(child) for child in self.children.get(node, [])]
            length = max(map(len, below), default=0)
            sums = [sum(w[i] for w in below if i < len(w)) for i in range(length)]
            self._widths[node] = [1, *sums]
        return self._widths[node]

    def peak(self, nodes: Sequence[Node]) -> int:
        """Most states held at once when nodes of one depth are taken to their leaves together.

        Two depths are held at a time; leaves are results, and count for nothing.
        """
        profiles = [self.widths(node) for node in nodes]
        depth = nodes[0].depth
        length = min(max(map(len, profiles)), self.steps - depth)
        sums = [sum(w[i] for w in profiles if i < len(w)) for i in range(length)]
        return max(a + b for a, b in zip(sums, [*sums[1:], 0], strict=True))

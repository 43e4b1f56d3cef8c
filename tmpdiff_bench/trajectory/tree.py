"""The prefix tree of plans: plans that agree on their first k steps share one node at depth k."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tmpdiff_bench.errors import UsageError
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


def check_lengths(plans: Sequence[PrecisionPlan]) -> int:
    """The number of steps of all plans. Raises `UsageError` for none, or unequal ones."""
    if not plans:
        raise UsageError("no plans to evaluate")
    steps = len(plans[0])
    if odd := next((p for p in plans if len(p) != steps), None):
        raise UsageError(f"plan {odd} has {len(odd)} steps, others have {steps}")
    return steps


def nodes_per_step(plans: Sequence[PrecisionPlan]) -> list[int]:
    """Distinct prefixes that end with each step: network steps a sample, step by step.

    All S (L-1) single plans and the reference of L levels have S + (L-1) S (S+1) / 2 in all, where
    one loop per plan takes S (1 + S (L-1)); all L^S plans have (L^(S+1) - L) / (L - 1).

    Raises `UsageError` for no plans, or unequal lengths.
    """
    steps, tree = check_lengths(plans), root()
    for plan in plans:
        grow(tree, plan)
    counts, nodes = [], [tree]
    for _ in range(steps):
        nodes = [child for node in nodes for child in node.children.values()]
        counts.append(len(nodes))
    return counts


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

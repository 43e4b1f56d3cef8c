"""Prefix-tree evaluation: every distinct prefix of all plans asked for runs once, while memory
lasts. What is shared, and what it saves, is counted in `tree`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LevelBank
from tmpdiff_bench.pipelines import Conditioning, SamplerState, StepwisePipeline
from tmpdiff_bench.plan import PrecisionPlan, check_lengths
from tmpdiff_bench.trajectory.tree import Node, Work, grow, root

# changes the latents (n, c, h, w) that a node of the tree starts from: (latents, step, level)
Perturbation = Callable[[Tensor, int, str], Tensor]
MAX_BATCH = 32
STATE_MEMORY = 2**30


class NonFiniteLatentsError(UsageError):
    """A step produced NaN or infinite latents; names the step and the level."""


class PrefixEngine:
    """Runs plans on n fixed samples: `conditioning` and `noise` (n, c, h, w) have n rows.

    Up to `max_batch` rows that need the same step and level run as one batch. At most
    `state_memory` bytes of states are held: where all plans at once would need more, the tree is
    taken in parts, depth first; what room is left keeps the states used last, so that later calls
    go on from the longest prefix they share with earlier ones. `perturb` changes the latents that
    each node starts from; `on_nfe` is told the network evaluations just spent.

    `nfe` counts network evaluations spent, `plain_nfe` those that one loop per plan asked for would
    have spent, `peak_memory` the most bytes of states ever held.
    """

    def __init__(
        self,
        pipeline: StepwisePipeline,
        bank: LevelBank,
        conditioning: Conditioning,
        noise: Tensor,
        *,
        max_batch: int = MAX_BATCH,
        state_memory: int = STATE_MEMORY,
        perturb: Perturbation | None = None,
        on_nfe: Callable[[int], None] | None = None,
    ) -> None:
        if max_batch < 1:
            raise UsageError(f"--max-batch is {max_batch}: at least 1 is needed")
        self.pipeline, self.bank = pipeline, bank
        self.nfe = self.plain_nfe = 0
        self._conditioning, self._samples = conditioning, len(noise)
        self._max_batch, self._perturb, self._on_nfe = max_batch, perturb, on_nfe
        self._tree = root()
        self._states = _States(state_memory)
        self._states.put(self._tree, pipeline.initial_state(noise))

    @property
    def peak_memory(self) -> int:
        """Most bytes of states ever held."""
        return self._states.peak

    @torch.no_grad()
    def evaluate(self, plans: Sequence[PrecisionPlan]) -> Tensor:
        """Final latents (P, n, c, h, w) of P plans, float32 on the CPU, all plans batched together.

        Raises:
            NonFiniteLatentsError: a step produced NaN or infinity.
            UsageError: plans of unequal length or not of `pipeline.steps` steps, an unknown level,
                or too little state memory for a single path through the tree.
        """
        leaves = self._leaves(plans)
        found = self._latents(leaves)
        return torch.stack([found[leaf] for leaf in leaves])

    def each(
        self, plans: Sequence[PrecisionPlan]
    ) -> Iterator[tuple[int, Tensor | NonFiniteLatentsError]]:
        """Runs one after the other, each as soon as it is done: a plan's index, and its latents
        after every step (S, n, c, h, w), float32 on the CPU, or what made the run fail.

        Depth first: every prefix is computed once, the states of one path are held at a time, and
        rows of different nodes never share a batch, so that the last bits of a run do not depend on
        the other plans. The first plan comes first. Raises `UsageError` as `evaluate`.
        """
        indices: dict[Node, list[int]] = {}
        for i, leaf in enumerate(self._leaves(plans)):
            indices.setdefault(leaf, []).append(i)
        work = Work.of(indices, (self._tree,), self.pipeline.steps)
        try:
            for leaf, run in self._runs_below(self._tree, (), work):
                for i in indices[leaf]:
                    yield i, run
        finally:
            self._states.unpin_all_but(self._tree)

    def _runs_below(
        self, node: Node, latents: tuple[Tensor, ...], work: Work
    ) -> Iterator[tuple[Node, Tensor | NonFiniteLatentsError]]:
        """The leaves below a node with their runs; `latents` are those up to the node."""
        children = work.children[node]
        for child in children:
            state, failure = None, None
            try:
                [state] = self._run(node.depth, child.level, [node])
            except NonFiniteLatentsError as error:
                failure = error
            if child is children[-1] and node is not self._tree:
                self._states.drop(node)
            if failure is not None:
                yield from ((leaf, failure) for leaf in work.leaves(child))
                continue
            assert state is not None
            along = (*latents, state.latents.float().cpu())
            if child.depth == work.steps:
                yield child, torch.stack(along)
            else:
                self._states.put(child, state)
                yield from self._runs_below(child, along, work)

    def _leaves(self, plans: Sequence[PrecisionPlan]) -> list[Node]:
        """The leaves of plans that can be run, their plain cost counted."""
        steps = check_lengths(plans)
        if steps != self.pipeline.steps:
            raise UsageError(f"plans have {steps} steps, the pipeline has {self.pipeline.steps}")
        for level in dict.fromkeys(level for plan in plans for level in plan):
            self.bank.check(level)
        per_plan = sum(self.pipeline.nfe(step) for step in range(steps))
        self.plain_nfe += len(plans) * per_plan * self._samples
        return [grow(self._tree, plan) for plan in plans]

    def _latents(self, wanted: Sequence[Node]) -> dict[Node, Tensor]:
        """Latents of nodes, computed where they are not at hand."""
        found = {
            node: self._states[node].latents.float().cpu()
            for node in wanted
            if node in self._states
        }
        work = Work.of(wanted, self._states, self.pipeline.steps)
        self._states.pin(work.starts)
        try:
            self._take(work, found)
        finally:
            self._states.unpin_all_but(self._tree)
        return found

    def _take(self, work: Work, found: dict[Node, Tensor]) -> None:
        """Compute all of `work`, its starts joining the frontier at their depths."""
        frontier: list[Node] = []
        for depth in range(work.steps):
            joining = [node for node in work.starts if node.depth == depth]
            # the root is held, and so are the starts that lie deeper
            others = 1 + sum(node.depth > depth for node in work.starts)
            frontier = self._advance([*joining, *frontier], others, work, found)

    def _advance(
        self, frontier: list[Node], others: int, work: Work, found: dict[Node, Tensor]
    ) -> list[Node]:
        """Take nodes of one depth a step on, and return their children; or, where memory lacks for
        that, take them to their leaves part by part, and return nothing. `others` is the number of
        states that must stay besides.
        """

        def fits(nodes: list[Node], besides: int) -> bool:
            return besides + work.peak(nodes) <= self._states.capacity

        if not frontier:
            return []
        if len(frontier) == 1 or fits(frontier, others):
            return self._step(frontier, work, found)
        while frontier:
            size = 1
            while size < len(frontier) and fits(
                frontier[: size + 1], others + len(frontier) - size - 1
            ):
                size += 1
            part, frontier = frontier[:size], frontier[size:]
            while part:
                part = self._advance(part, others + len(frontier), work, found)
        return []

    def _step(self, nodes: list[Node], work: Work, found: dict[Node, Tensor]) -> list[Node]:
        """Run one step from nodes of one depth, level by level; returns the children to go on."""
        step = nodes[0].depth
        unborn = {node: len(work.children[node]) for node in nodes}
        edges: dict[str, list[tuple[Node, Node]]] = {}
        for node in nodes:
            for child in work.children[node]:
                edges.setdefault(child.level, []).append((node, child))
        born: list[Node] = []
        for level, pairs in edges.items():
            states = self._run(step, level, [node for node, _ in pairs])
            for (node, child), state in zip(pairs, states, strict=True):
                unborn[node] -= 1
                if not unborn[node] and node is not self._tree:
                    self._states.unpin(node)
                leaf = step + 1 == work.steps
                self._states.put(child, state, spare=leaf)
                if leaf:
                    found[child] = state.latents.float().cpu()
                else:
                    born.append(child)
        return born

    def _run(self, step: int, level: str, nodes: list[Node]) -> Iterator[SamplerState]:
        """The state that one step at one level leads to from each node, in batches of rows."""
        n = self._samples
        done: list[SamplerState] = []  # rows of nodes of which not all rows are done
        # nodes times samples as one list of rows, cut into even batches: a small rest would be slow
        total = len(nodes) * n
        for rows in torch.arange(total).tensor_split(math.ceil(total / self._max_batch)):
            first, last = int(rows[0]) // n, int(rows[-1]) // n
            inputs = [self._input(node, step, level) for node in nodes[first : last + 1]]
            batch = SamplerState.cat(inputs)[rows - first * n]
            batch = self.pipeline.step(batch, step, self.bank[level], self._conditioning[rows % n])
            if not torch.isfinite(batch.latents).all():
                raise NonFiniteLatentsError(
                    f"step {step} at level {level} produced non-finite latents: leave the level "
                    "out, or run the model in another dtype"
                )
            spent = len(rows) * self.pipeline.nfe(step)
            self.nfe += spent
            if self._on_nfe is not None:
                self._on_nfe(spent)
            whole = SamplerState.cat([*done, batch])
            for k in range(len(whole) // n):
                # picked by index, hence copied: a slice would keep the whole batch in memory
                yield whole[torch.arange(k * n, (k + 1) * n)]
            done = [whole[len(whole) // n * n :]] if len(whole) % n else []

    def _input(self, node: Node, step: int, level: str) -> SamplerState:
        state = self._states[node]
        if self._perturb is None:
            return state
        return SamplerState(self._perturb(state.latents, step, level), state.memory)


class _States:
    """States by node, within a number of bytes: those in use, and of the rest those used last."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self._largest, self.peak = limit, 0, 1, 0
        self._used: dict[Node, SamplerState] = {}
        self._spare: OrderedDict[Node, SamplerState] = OrderedDict()

    def __contains__(self, node: object) -> bool:
        return node in self._used or node in self._spare

    def __getitem__(self, node: Node) -> SamplerState:
        return self._used[node] if node in self._used else self._spare[node]

    @property
    def capacity(self) -> int:
        """How many states fit, by the largest so far."""
        return self._limit // self._largest

    def put(self, node: Node, state: SamplerState, *, spare: bool = False) -> None:
        """Hold a state in use, at the expense of spare ones; a spare one where there is room."""
        size = state.nbytes
        self._largest = max(self._largest, size)
        while self._bytes + size > self._limit and self._spare:
            self._bytes -= self._spare.popitem(last=False)[1].nbytes
        if self._bytes + size > self._limit:
            if spare:
                return
            raise UsageError(
                f"--state-memory of {self._limit:,} bytes is too little: the state of all samples "
                f"takes {size:,} bytes, and {len(self._used)} are in use; allow more, or take "
                "fewer samples at a time"
            )
        (self._spare if spare else self._used)[node] = state
        self._bytes += size
        self.peak = max(self.peak, self._bytes)

    def pin(self, nodes: Iterable[Node]) -> None:
        """Take states at hand into use."""
        for node in nodes:
            if node in self._spare:
                self._used[node] = self._spare.pop(node)

    def unpin(self, node: Node) -> None:
        """Give a state free, as the one used last."""
        self._spare[node] = self._used.pop(node)

    def drop(self, node: Node) -> None:
        """Forget a state in use."""
        self._bytes -= self._used.pop(node).nbytes

    def unpin_all_but(self, node: Node) -> None:
        """Give all others free."""
        for other in [used for used in self._used if used is not node]:
            self.unpin(other)

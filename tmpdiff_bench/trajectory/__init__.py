"""Recording trajectories: the prefix-tree engine, the recorder, and recordings on disk."""

from tmpdiff_bench.trajectory.engine import NonFiniteLatentsError, PrefixTree, evaluate
from tmpdiff_bench.trajectory.recorder import JointRun, record
from tmpdiff_bench.trajectory.recording import Recording
from tmpdiff_bench.trajectory.workload import Workload

__all__ = [
    "JointRun",
    "NonFiniteLatentsError",
    "PrefixTree",
    "Recording",
    "Workload",
    "evaluate",
    "record",
]

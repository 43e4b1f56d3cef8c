"""Do quantization errors of single denoising steps add up? Design, tests and report."""

from tmpdiff_bench.additivity.analysis import analyse
from tmpdiff_bench.additivity.design import JointPlan, joint_design, prefix_tree_nodes
from tmpdiff_bench.additivity.inference import additivity_test, holm
from tmpdiff_bench.additivity.predictors import PREDICTORS
from tmpdiff_bench.additivity.records import AdditivityReport, AdditivityTest, Interval

__all__ = [
    "PREDICTORS",
    "AdditivityReport",
    "AdditivityTest",
    "Interval",
    "JointPlan",
    "additivity_test",
    "analyse",
    "holm",
    "joint_design",
    "prefix_tree_nodes",
]

"""What a step costs at a level: measured on this device, or by a roofline."""

from tmpdiff_bench.costs.table import COSTED_AS, Cost, CostTable, load_costs, shipped

__all__ = ["COSTED_AS", "Cost", "CostTable", "load_costs", "shipped"]

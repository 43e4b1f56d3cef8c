"""Roofline cost tables: the least time that each layer's arithmetic or memory traffic takes.

A layer takes the longer of its operations at the peak rate of its number format and its bytes at
the full bandwidth (Williams et al. 2009, "Roofline: an insightful visual performance model"); a
step is the sum of its layers. Real kernels are slower, and not all by the same factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tmpdiff_bench.costs.architectures import architecture
from tmpdiff_bench.costs.counting import Operation, count_operations
from tmpdiff_bench.costs.hardware import Hardware
from tmpdiff_bench.costs.table import Cost, CostTable
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.levels import LEVEL_NAMES, Level
from tmpdiff_bench.pipelines import quantized_layers

REFERENCE = "bf16"
# all but fp32, beside which every format looks fast
DEFAULT_LEVELS = (
    *(name for name in LEVEL_NAMES if name != "fp32"),
    "w4a4+lr32",
    "nvfp4+lr32",
)
# bits of a value, its share of a block's scale included
_BITS = {
    "fp32": 32.0,
    "bf16": 16.0,
    "fp16": 16.0,
    "int8": 8.0,
    "int6": 6.0,
    "int4": 4.0,
    "fp8": 8.0,
    "fp8_e5m2": 8.0,
    "mxfp8": 8 + 8 / 32,
    "mxfp6": 6 + 8 / 32,
    "mxfp4": 4 + 8 / 32,
    "nvfp4": 4 + 8 / 16,
}
_GROUP_SCALE_BITS = 16.0
# the tensor core mode that runs a format, where it has another name
_MODE = {"int6": "int8", "fp8_e5m2": "fp8"}
_UNQUANTIZED = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class StepTime:
    """Least time of one call of the network; `compute_bound` is arithmetic's share of it.

    `weight_bytes` is what the network's weights take at this level.
    """

    ms: float
    compute_bound: float
    weight_bytes: float


def roofline_table(
    model: str, hardware: Hardware, *, resolution: int, levels: Sequence[str]
) -> CostTable:
    """The table of a family's true-size denoiser, for square images of `resolution` pixels.

    `levels` need not name the reference, bf16. Those whose format the hardware lacks are in
    `refused`, with the reason. A table of other levels than `DEFAULT_LEVELS` has them in its name,
    so that it never replaces the whole one.

    Raises:
        UsageError: an unknown model or level, a resolution that the model does not take, or no
            level but the reference that the hardware has.
    """
    shape = architecture(model)
    operations = model_operations(model, resolution)
    times: dict[str, StepTime] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys((REFERENCE, *levels)):
        level = Level.parse(name)
        mode = compute_format(level)
        if mode in hardware.peak:
            times[name] = step_time(operations, level, hardware)
        else:
            lacking = f"the hardware sheet {hardware.key} has no rate for {mode}"
            refused[name] = f"{mode}: {hardware.absent.get(mode, lacking)}"
    if refused and len(times) == 1:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UsageError(f"{hardware.name} runs none of these levels: {reasons}")
    return CostTable(
        name=_name(model, hardware, resolution, levels),
        kind="roofline",
        model=f"{shape.title} at {resolution}x{resolution}",
        device=hardware.name,
        levels={name: Cost(float(f"{time.ms:.6g}")) for name, time in times.items()},
        compute_bound={name: round(time.compute_bound, 4) for name, time in times.items()},
        refused=refused,
        setting={
            "resolution": resolution,
            "rows": shape.rows,
            "tflop": float(f"{sum(op.flops for op in operations) / 1e12:.6g}"),
            "bf16_weights_gb": float(f"{times[REFERENCE].weight_bytes / 1e9:.4g}"),
            "memory_gb": hardware.memory_gb,
        },
    )


def _name(model: str, hardware: Hardware, resolution: int, levels: Sequence[str]) -> str:
    chosen = () if set(levels) >= set(DEFAULT_LEVELS) else levels
    return "-".join(["roofline", model, hardware.key, str(resolution), *chosen]).replace("+", "-")


@cache
def model_operations(model: str, resolution: int) -> tuple[Operation, ...]:
    """What a family's true-size denoiser does in one step of a square image."""
    shape = architecture(model)
    inputs = shape.call(resolution, resolution)
    denoiser = shape.build()
    return tuple(count_operations(denoiser, inputs, quantized_layers(denoiser)))


def step_time(operations: Sequence[Operation], level: Level, hardware: Hardware) -> StepTime:
    """The roofline of one call with its quantized layers at `level`, the others at bf16.

    At `fp32` all layers are. Quantizing a layer's input is a pass of its own, once per input; a
    low-rank branch is fused with its layer, as SVDQuant's kernels do.

    Raises:
        KeyError: the hardware lacks the level's format (see `compute_format`).
    """
    base = "fp32" if level.is_plain else REFERENCE
    rate = hardware.bandwidth
    total = bound = weight_bytes = 0.0
    for operation in operations:
        if operation.quantized and not level.is_plain:
            compute, traffic, weights, extra = _quantized(operation, level, hardware)
        else:
            size = _BITS[base] / 8
            compute = operation.flops / hardware.peak[base]
            weights, extra = operation.weights * size, 0.0
            traffic = (operation.inputs + operation.outputs) * size + weights
        memory = traffic / rate
        total += max(compute, memory) + extra / rate
        bound += compute if compute >= memory else 0.0
        weight_bytes += weights
    return StepTime(1e3 * total, bound / total, weight_bytes)


def compute_format(level: Level) -> str:
    """The number format that a level's products are computed in.

    Weights stored in fewer bits than activations are unpacked to the activations' format.
    """
    if level.is_plain:
        return "fp32"
    format = level.activation or REFERENCE
    weight = level.weight or format
    if format not in _UNQUANTIZED and _BITS[weight] > _BITS[format]:
        format = weight
    return _MODE.get(format, format)


def _quantized(
    operation: Operation, level: Level, hardware: Hardware
) -> tuple[float, float, float, float]:
    """Seconds of arithmetic, bytes moved, bytes of weights among them, bytes of a pass before."""
    outer = _BITS[REFERENCE] / 8
    activation, weight = level.activation or REFERENCE, level.weight or REFERENCE
    inner = _BITS[activation] / 8
    group = _GROUP_SCALE_BITS / level.weight_group if level.weight_group else 0.0
    weights = operation.weights * (_BITS[weight] + group) / 8
    compute = operation.flops / hardware.peak[compute_format(level)]
    traffic = operation.inputs * inner + operation.outputs * outer
    if level.rank:
        branch = level.rank * (operation.fan_in + operation.fan_out)
        compute += 2 * operation.rows * branch / hardware.peak[REFERENCE]
        weights += branch * outer
        traffic += 2 * operation.rows * level.rank * outer  # between its two factors, and back
    quantizing = operation.first_use and activation not in _UNQUANTIZED
    extra = operation.inputs * (outer + inner) if quantizing else 0.0
    return compute, traffic + weights, weights, extra

"""What a number is held to on a machine with other kernels than the goldens' (see `golden`)."""

from __future__ import annotations

from analysis.base import Tolerance

# Of a mean error, or of a ratio of errors, over a few samples: a stated bound, not a fitted one. It
# lets through what another draw of the rounding noise does, and holds what a fault does: a level
# that does not round, a plan shifted by a step, another guidance.
CHAOTIC = Tolerance(0.5, 0.005, "other kernels draw other rounding noise: half of it")
# Rows of plans that measured errors hardly choose. The others decide near-ties on so few samples
# otherwise under other kernels, and their errors have been seen to differ fourfold then.
UNCHOSEN = {"allocator": ("reference", "uniform", "fewer_steps")}
DESIGNED = Tolerance(0, 0, "by design of the suite, whatever the kernels")

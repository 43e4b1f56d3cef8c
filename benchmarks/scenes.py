"""Images a second of the Scenes renderer.

    python -m benchmarks.scenes [--images 8192]

The figure that matters is above 2,000 on two cores: training draws its scenes as it goes.
"""

from __future__ import annotations

import argparse
import time

from tmpdiff_bench.zoo.scenes import render, sample_scenes


def main() -> None:
    """Sample and render, in batches of 64 as training does; print the best of three rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8192)
    options = parser.parse_args()
    best = 0.0
    for seed in range(3):
        started = time.perf_counter()
        scenes = sample_scenes(options.images, seed=seed)
        for start in range(0, options.images, 64):
            render(scenes[slice(start, start + 64)])
        best = max(best, options.images / (time.perf_counter() - started))
    print(f"{best:,.0f} images/s, sampled and rendered at 64 px")


if __name__ == "__main__":
    main()

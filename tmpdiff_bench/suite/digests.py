"""What must agree for two results to be comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from tmpdiff_bench.costs import load_costs
from tmpdiff_bench.pipelines.digests import weights_digest
from tmpdiff_bench.pipelines.embedded import call_defaults, model_folder
from tmpdiff_bench.store import digest
from tmpdiff_bench.suite.bench import Prompts
from tmpdiff_bench.suite.tasks import Task
from tmpdiff_bench.suite.v1 import METRICS, SEED, VERSION, Profile
from tmpdiff_bench.trajectory.workload import ALGORITHM_VERSION


def digests(profile: Profile, tasks: Sequence[Task], absent: Mapping[str, str]) -> dict[str, str]:
    """sha256 by what it is of: `tasks` (with the profile's numbers of samples), `metrics`, the
    `algorithm` that runs plans and draws noise, and every model that is there (with the arguments
    of its calls), prompt set and cost table.
    """
    found = {
        "tasks": digest(
            {
                "version": VERSION,
                "tasks": [task.name for task in tasks],
                "samples": [profile.calibration, profile.evaluation, SEED],
            }
        ),
        "metrics": digest({"metrics": METRICS}),
        "algorithm": digest({"version": ALGORITHM_VERSION}),
    }
    for model in dict.fromkeys(task.model for task in tasks):
        if model not in absent:
            weights = weights_digest(model_folder(model))
            about = {"weights": weights, "call": call_defaults(model)}
            found[f"model {model}"] = digest(about)
    for name in dict.fromkeys(task.prompt_set for task in tasks):
        sets = [
            Prompts(name, split, count, SEED).table
            for split, count in (
                ("calibration", profile.calibration),
                ("evaluation", profile.evaluation),
            )
        ]
        texts = [list(zip(t["prompt_id"], t["text"], t["requirement"], strict=True)) for t in sets]
        found[f"prompts {name}"] = digest({"prompts": texts})
    for name in dict.fromkeys(task.cost_table for task in tasks):
        content = load_costs(name).to_json().encode()
        found[f"costs {name}"] = hashlib.sha256(content).hexdigest()
    return found

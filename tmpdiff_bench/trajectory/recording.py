"""A recording: the reference, single and joint runs of a workload, in memory and on disk.

On disk it is a folder: `manifest.json`, safetensors files, one Parquet table. It is complete
without the model. Nothing in it is pickled, and every file is checked by its sha256 on opening.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load, save

from tmpdiff_bench.files import read_manifest
from tmpdiff_bench.plan import PrecisionPlan
from tmpdiff_bench.store.cells import read_verified, whole, write_folder

SCHEMA_VERSION = 3
_ARRAYS = (
    *("reference", "singles", "replicates", "replicate_rows", "held_out", "joint", "floor"),
    *("reference_path", "single_paths"),
)


@dataclass(frozen=True, eq=False)
class Recording:
    """Terminal deviations and joint errors of n samples (float32; latents flattened to D elements).

    `reference` (n, D) final latents of the reference runs, of the manifest's `latent_shape`;
    `singles` (L-1, S, n, D) terminal deviations; `replicates` (L-1, S, r, D) the same of jittered
    single runs, for the samples `replicate_rows` (r,); `joint` (P, n, D) joint errors of `plans`,
    with their design labels `kinds` and the flag `held_out` (P,); `floor` (n,) latent RMSE of the
    reference rerun at another batch size; `table` the tidy metric values (columns model, dataset,
    plan, kind, prompt_id, seed, metric, value); `pictures` uint8 (m, H, W, 3) by run ("reference"
    or the plan's text) for the samples `picture_rows`. `reference_path` (R, n, D): latents of the
    reference after every step that ran (the last R of S); `single_paths` (L-1, S, R, n, D):
    deviations of single runs after every step, where they were captured.
    """

    levels: tuple[str, ...]
    steps: int
    samples: tuple[tuple[str, int], ...]
    prompts: dict[str, str]
    reference: NDArray[np.float32]
    singles: NDArray[np.float32]
    replicates: NDArray[np.float32] | None
    replicate_rows: NDArray[np.int64]
    plans: tuple[PrecisionPlan, ...]
    kinds: tuple[str, ...]
    held_out: NDArray[np.bool_]
    joint: NDArray[np.float32]
    floor: NDArray[np.float32]
    table: pd.DataFrame
    pictures: dict[str, NDArray[np.uint8]]
    picture_rows: NDArray[np.int64]
    manifest: dict[str, Any]
    reference_path: NDArray[np.float32] | None = None
    single_paths: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return (
            f"Recording({self.manifest['title']}: {self.steps} steps, {', '.join(self.levels)}; "
            f"{len(self.samples)} samples, {len(self.plans)} joint plans)"
        )

    def _repr_html_(self) -> str:
        from tmpdiff_bench.report.pages import pictures_html  # a recording is read without it

        uniform = [str(PrecisionPlan.uniform(level, self.steps)) for level in self.levels[1:]]
        shown = [name for name in ("reference", *uniform) if name in self.pictures]
        rows = [pictures_html(name, self.pictures[name]) for name in shown]
        return "\n".join([f"<p>{escape(repr(self))}</p>", *rows])

    @property
    def generator_seeds(self) -> tuple[int, ...]:
        """Of each sample, the seed that draws it again: `pipe(prompt, generator=torch.Generator(
        "cpu").manual_seed(recording.generator_seeds[i]), num_inference_steps=S, **call)`.
        """
        return tuple(self.manifest["workload"]["generator_seeds"])

    def save(self, folder: Path) -> Recording:
        """Write the recording into `folder`; the manifest comes last, so that a folder with one is
        whole. Returns the recording with the digests in its manifest.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        pictures = {"rows": self.picture_rows, **self.pictures}
        files = {
            "latents.safetensors": save({k: np.ascontiguousarray(v) for k, v in arrays.items()}),
            "pictures.safetensors": save({k: np.ascontiguousarray(v) for k, v in pictures.items()}),
            "table.parquet": self.table.to_parquet(None, index=False),
        }
        about = {
            **self.manifest,
            "schema_version": SCHEMA_VERSION,
            "levels": list(self.levels),
            "steps": self.steps,
            "samples": [list(sample) for sample in self.samples],
            "prompts": self.prompts,
            "plans": [str(plan) for plan in self.plans],
            "kinds": list(self.kinds),
        }
        return Recording(**{**vars(self), "manifest": write_folder(folder, files, about)})

    @classmethod
    def open(cls, folder: Path | str) -> Recording:
        """Read a recording.

        Raises:
            UsageError: there is none, it is of another schema version, a file is missing, names a
                place outside the folder, or differs from its digest.
        """
        folder = Path(folder)
        manifest = read_manifest(
            folder,
            absent="no recording: there is no manifest.json in it",
            schema_version=SCHEMA_VERSION,
        )
        with whole(folder, "recording"):
            contents = {
                name: read_verified(folder, name, digest)
                for name, digest in manifest["files"].items()
            }
            arrays = load(contents["latents.safetensors"])
            pictures = load(contents["pictures.safetensors"])
            table = pd.read_parquet(io.BytesIO(contents["table.parquet"]))
            return cls(
                levels=tuple(manifest["levels"]),
                steps=manifest["steps"],
                samples=tuple((str(prompt), int(seed)) for prompt, seed in manifest["samples"]),
                prompts=manifest["prompts"],
                plans=tuple(map(PrecisionPlan.parse, manifest["plans"])),
                kinds=tuple(manifest["kinds"]),
                replicates=arrays.pop("replicates", None),
                table=table,
                picture_rows=pictures.pop("rows"),
                pictures=pictures,
                manifest=manifest,
                **arrays,
            )


def call_words(arguments: Mapping[str, Any]) -> str:
    """The arguments of a call in words, such as "guidance_scale 4, height 1024".

    >>> call_words({"guidance_scale": 4.0, "negative_prompt": ""}), call_words({})
    ("guidance_scale 4, negative_prompt ''", "the pipeline's own defaults")
    """
    words = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v!r}" for k, v in arguments.items()]
    return ", ".join(words) or "the pipeline's own defaults"

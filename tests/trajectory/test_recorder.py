"""Recordings: complete, the same bytes however often interrupted, and refused when damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from safetensors.numpy import load_file

from tests.toy import LEVELS as FUNCTIONS
from tests.toy import NAN, SHAPE, by_hand, toy, toy_banks, toy_call
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.metrics import IMAGE_METRICS
from tmpdiff_bench.noise import generator_seed
from tmpdiff_bench.pipelines import LoadedModel
from tmpdiff_bench.plan import JointPlan, PrecisionPlan, nodes_per_step
from tmpdiff_bench.store import CellStore
from tmpdiff_bench.trajectory import NonFiniteLatentsError, Recording, Workload, recorder
from tmpdiff_bench.trajectory.jobs import Jobs
from tmpdiff_bench.trajectory.recorder import record_setup
from tmpdiff_bench.trajectory.setup import Setup

STEPS = 4
LEVELS = tuple(FUNCTIONS)
JOINT = (
    JointPlan(PrecisionPlan.parse("w8a8*4"), "uniform", False),
    JointPlan(PrecisionPlan.parse("w4a4 w8a8 fp32 w8a8"), "mixed", True),
)
Function = Callable[[torch.Tensor], torch.Tensor]


def workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "model": "toy",
        "weights": "untrained",
        "weights_digest": "0" * 64,
        "sampler": {"class": "FlowMatchEulerDiscreteScheduler"},
        "steps": STEPS,
        "prompts": {"p0": "a red circle", "p1": "two stars", "p2": "ein Ring"},
        "seeds": (0, 1),
        "dtype": "float32",
        "max_batch": 4,
    }
    return Workload(**{**fields, **changes})


def setup(
    *, levels: tuple[str, ...] = LEVELS, joint: tuple[JointPlan, ...] = JOINT, **changes: Any
) -> Setup:
    asked = workload(**changes)
    texts = [asked.prompts[prompt] for prompt, _ in asked.samples]
    call = toy_call(texts, STEPS, seeds=asked.generator_seeds, **asked.arguments)
    loaded = LoadedModel("toy", toy(), "untrained", "0" * 64, torch.device("cpu"))
    return Setup(loaded, call, asked, levels, "scenes", joint, image_size=(32, 32))


@pytest.fixture(autouse=True)
def _toy_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "level_banks", toy_banks(FUNCTIONS))


def make(folder: Path, *, store: Path | None = None, **changes: Any) -> Recording:
    return record_setup(setup(**changes), folder, store=store)


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_shapes_and_identities(tmp_path: Path) -> None:
    found = make(tmp_path)
    n, size = 6, int(np.prod(SHAPE))
    assert found.reference.shape == (n, size)
    assert found.singles.shape == (2, STEPS, n, size)
    assert found.joint.shape == (2, n, size)
    assert found.samples[:3] == (("p0", 0), ("p0", 1), ("p1", 0))
    assert found.replicates is not None
    assert found.replicates.shape == (2, STEPS, len(found.replicate_rows), size)
    # the toy is smooth, so a replicate is the single run up to the jitter
    assert np.allclose(found.replicates, found.singles[:, :, found.replicate_rows], atol=1e-4)
    assert set(found.pictures) == {"reference", *(str(p) for p in found.plans)} | {
        str(PrecisionPlan.single("fp32", level, step, STEPS))
        for level in LEVELS[1:]
        for step in range(STEPS)
    }
    assert found.manifest["nfe"]["spent"] < found.manifest["nfe"]["plain_loop"]


def test_every_run_is_that_of_a_loop_by_hand(tmp_path: Path) -> None:
    found, call = make(tmp_path), setup().call
    runs = [found.reference, *found.singles.reshape(-1, *found.reference.shape), *found.joint]
    for plan, run in zip(Jobs(workload(), LEVELS, JOINT, "terminal", {}).runs, runs, strict=True):
        final = run if run is found.reference else found.reference + run
        expected = by_hand(FUNCTIONS, plan.levels, call).flatten(1)
        np.testing.assert_allclose(final, expected, rtol=0, atol=2e-6)
    assert found.reference_path is not None
    for step, latents in enumerate(found.reference_path, 1):
        expected = by_hand(FUNCTIONS, ("fp32",) * step, call).flatten(1)
        np.testing.assert_allclose(latents, expected, rtol=0, atol=2e-6)


def test_table_agrees_with_the_arrays(tmp_path: Path) -> None:
    found = make(tmp_path)
    table = found.table
    assert len(table) == (2 * STEPS + 2) * 6 * (2 + len(IMAGE_METRICS))
    assert not table.isna().any().any()
    rmse = table[table.metric == "latent_rmse"].set_index(["plan", "prompt_id", "seed"]).value
    for plan, errors in zip(found.plans, found.joint, strict=True):
        for (prompt, seed), error in zip(found.samples, errors, strict=True):
            expected = float(np.sqrt(np.mean(error.astype(np.float64) ** 2)))
            assert rmse[str(plan), prompt, seed] == pytest.approx(expected, rel=1e-5)


def test_the_table_opens_with_datasets(tmp_path: Path) -> None:
    found = make(tmp_path / "recording")
    loaded = load_dataset(
        "parquet",
        data_files=str(tmp_path / "recording" / "table.parquet"),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    assert loaded.num_rows == len(found.table)
    assert loaded.column_names == [
        *("model", "dataset", "plan", "kind", "prompt_id", "seed", "metric", "value")
    ]


def test_round_trip_and_reuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path)
    monkeypatch.setattr(recorder, "PrefixEngine", None)  # nothing may be computed any more
    again, opened = make(tmp_path), Recording.open(tmp_path)
    for other in (again, opened):
        for field in dataclasses.fields(Recording):
            a, b = getattr(made, field.name), getattr(other, field.name)
            if isinstance(a, np.ndarray):
                assert np.array_equal(a, b), field.name
            elif isinstance(a, pd.DataFrame):
                pd.testing.assert_frame_equal(a, b)
            elif field.name in ("levels", "steps", "samples", "prompts", "plans", "kinds"):
                assert a == b


@pytest.mark.parametrize("after", [1, 2, 12, 23, 40])
def test_interrupted_runs_end_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stopped before the cell `after` is stored: the cells before it are not computed again."""
    make(tmp_path / "whole")
    put, stored = CellStore.put, list[str]()

    def interrupted(store: CellStore, key: str, arrays: Any) -> None:
        stored.append(key)
        if len(stored) == after:
            raise KeyboardInterrupt
        put(store, key, arrays)

    monkeypatch.setattr(CellStore, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken")
    make(tmp_path / "broken")
    # two chunks of the reference, 8 single and 2 joint runs, the floor, and 8 replicates each
    assert len(set(stored)) == 2 * (1 + 8 + 2 + 1 + 8)
    assert len(stored) == len(set(stored)) + 1
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_damaged_cell_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "whole")
    monkeypatch.setattr(recorder, "assemble", _fail)
    with pytest.raises(OSError, match="stopped"):
        make(tmp_path / "broken")
    cell = next((tmp_path / "broken" / "cells").rglob("*.safetensors"))
    cell.write_bytes(cell.read_bytes()[:-100])
    monkeypatch.undo()
    monkeypatch.setattr(recorder, "level_banks", toy_banks(FUNCTIONS))
    with pytest.warns(UserWarning, match="is damaged: it is computed again"):
        make(tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_more_plans_and_levels_reuse_what_is_stored(tmp_path: Path) -> None:
    """A run's cell depends on no other plan: the same bytes alone, and among more of them."""
    store = tmp_path / "store"
    few = make(tmp_path / "few", store=store, levels=LEVELS[:2], joint=JOINT[:1])
    cells = {path: path.read_bytes() for path in store.rglob("*.safetensors")}
    more = make(tmp_path / "more", store=store)
    assert {path: path.read_bytes() for path in cells} == cells
    alone = make(tmp_path / "alone")
    assert contents(tmp_path / "more") == contents(tmp_path / "alone")
    np.testing.assert_array_equal(few.singles[0], more.singles[0])
    # of each sample: the reference, whose images are compared with, single runs of the third level
    # and the second joint plan; single replicates of that level
    reference = PrecisionPlan.uniform("fp32", STEPS)
    nodes = nodes_per_step([reference, *_last_level(JOINT[1:])])
    assert more.manifest["nfe"]["computed"] == 6 * sum(nodes) + 3 * sum(
        nodes_per_step(_last_level(()))
    )
    assert more.manifest["nfe"]["spent"] == alone.manifest["nfe"]["computed"]


def test_calibration_is_part_of_the_key_of_low_rank_runs() -> None:
    """The second chunk has none of the samples that inputs are measured on; its keys tell of them,
    where a plan uses a level with a low-rank branch, and only there.
    """

    def keys(**changes: Any) -> dict[str, str]:
        jobs = Jobs(workload(**changes), ("fp32", "w4a4+lr4", "w8a8"), (), "terminal", {})
        job = jobs.chunks[1][0]
        assert job.rows == (4, 5)
        return dict(zip(map(str, job.plans), job.keys, strict=True))

    before = keys()
    after = keys(prompts={**workload().prompts, "p0": "a blue ring"})
    assert {plan for plan in before if before[plan] != after[plan]} == {
        plan for plan in before if "+lr" in plan
    }
    assert "w8a8 fp32*3" in before


def _last_level(joint: tuple[JointPlan, ...]) -> list[PrecisionPlan]:
    singles = [PrecisionPlan.single("fp32", LEVELS[2], step, STEPS) for step in range(STEPS)]
    return [*singles, *(run.plan for run in joint)]


def _fail(*_: object) -> None:
    raise OSError("stopped")


def test_other_settings_do_not_reuse_a_folder(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UsageError, match="recording of other settings; name another"):
        make(tmp_path, arguments={"guidance_scale": 2.0})
    assert len(contents(tmp_path)) == 3, "what was there is untouched"


@pytest.mark.parametrize(
    "change",
    [
        {"weights_digest": "1" * 64},
        {"sampler": {"class": "Heun"}},
        {"arguments": {"guidance_scale": 1.5}},
        {"columns": {"negative_prompt": {"p0": "x", "p1": "", "p2": ""}}},
        {"adapter": "style.safetensors 0.5"},
        {"quantized": ("blocks.0.to_out",)},
        {"prompts": {"p0": "a red circle", "p1": "two stars", "p2": "ein Stern"}},
        {"seeds": (0, 2)},
        {"dtype": "bfloat16"},
        {"max_batch": 8},
    ],
)
def test_everything_that_changes_a_number_is_in_the_key(change: dict[str, object]) -> None:
    assert workload(**change).key() != workload().key()
    assert workload(weights="elsewhere").key() == workload().key()


def test_samples_do_not_depend_on_the_prompt_set(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    part = make(tmp_path / "part", prompts={"p1": "two stars"})
    rows = [i for i, (prompt, _) in enumerate(whole.samples) if prompt == "p1"]
    assert np.allclose(whole.singles[:, :, rows], part.singles, atol=1e-6)
    assert np.allclose(whole.reference[rows], part.reference, atol=1e-6)


def test_damage_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "latents.safetensors"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), good[:-1]):
        path.write_bytes(bad)
        with pytest.raises(UsageError, match=r"latents\.safetensors is damaged"):
            Recording.open(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match="can't be read: No such file"):
        Recording.open(tmp_path)


def test_manifests_are_not_trusted(tmp_path: Path) -> None:
    make(tmp_path / "recording")
    path = tmp_path / "recording" / "manifest.json"
    good = json.loads(path.read_text())
    (tmp_path / "secret").write_text("x")
    for manifest, message in (
        ({**good, "files": {"../secret": "0"}}, "no plain file"),
        ({**good, "schema_version": 99}, "schema version 99"),
        ([], "schema version None"),
    ):
        path.write_text(json.dumps(manifest))
        with pytest.raises(UsageError, match=message):
            Recording.open(tmp_path / "recording")
    path.write_text("{")
    with pytest.raises(UsageError, match=r"manifest\.json can't be read"):
        Recording.open(tmp_path / "recording")
    with pytest.raises(UsageError, match="holds no recording"):
        Recording.open(tmp_path)


def test_diverging_runs_are_stored_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, the others are kept, and the same command says the same without computing."""

    def diverging(x: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(generator_seed("p1", 0))
        worst = torch.randn(SHAPE, generator=generator)
        hit = (x - worst).abs().amax(dim=(1, 2, 3)) < 1e-6
        return torch.where(hit[:, None, None, None], torch.nan, -0.9 * x)

    banks = toy_banks({**FUNCTIONS, "w8a8": diverging})
    monkeypatch.setattr(recorder, "level_banks", banks)
    message = r"step 0 at level w8a8 produced non-finite latents.*\(among p1 seed 0, p1 seed 1\)$"
    with pytest.raises(NonFiniteLatentsError, match=message):
        make(tmp_path, max_batch=2)
    cells = [load_file(path) for path in (tmp_path / "cells").glob("??/*.safetensors")]
    assert len(cells) == 3 * (1 + 8 + 2 + 1 + 8)
    # a single and a joint run start low; the replicate starts from a jittered input
    assert sum("failed" in cell for cell in cells) == 2
    assert all(np.isfinite(value).all() for cell in cells for value in cell.values())
    monkeypatch.setattr(recorder, "PrefixEngine", None)
    with pytest.raises(NonFiniteLatentsError, match=message):
        make(tmp_path, max_batch=2)
    assert not (tmp_path / "manifest.json").exists()


def test_without_a_reference_a_chunk_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be compared with a reference that diverged."""
    monkeypatch.setattr(recorder, "level_banks", toy_banks({**FUNCTIONS, "fp32": NAN}))
    with pytest.raises(NonFiniteLatentsError, match="step 0 at level fp32"):
        make(tmp_path)
    assert len(list((tmp_path / "cells").glob("??/*.safetensors"))) == 2


@pytest.mark.parametrize("plan", ["fp32*4", "fp32 w8a8 fp32*2", "w8a8*4"])
def test_joint_plans_are_joint_and_given_once(tmp_path: Path, plan: str) -> None:
    joint = (*JOINT, JointPlan(PrecisionPlan.parse(plan), "given", True))
    with pytest.raises(UsageError, match="given once, and have at least two low steps"):
        make(tmp_path, joint=joint)


def test_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file: name a folder"):
        make(tmp_path / "file")


def test_other_files_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "cells" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("x")
    make(tmp_path)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["mine.txt"]


def test_a_changed_split_is_another_recording(tmp_path: Path) -> None:
    make(tmp_path)
    flipped = tuple(JointPlan(run.plan, run.kind, not run.held_out) for run in JOINT)
    with pytest.raises(UsageError, match="recording of other settings"):
        make(tmp_path, joint=flipped)


def test_the_manifest_tells_what_went_in(tmp_path: Path) -> None:
    found = make(tmp_path)
    manifest = found.manifest
    assert manifest["numerical_floor"] >= 0
    assert manifest["nfe"]["computed"] == manifest["nfe"]["spent"]
    assert manifest["nfe"]["per_step"] == [1] * STEPS
    assert manifest["latent_shape"] == list(SHAPE)
    assert manifest["workload"]["image_size"] == [32, 32]
    assert manifest["schedule"] == {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "timesteps": [1000, 750, 500, 250],
        "sigmas": [1, 0.75, 0.5, 0.25],
    }


def test_anybody_draws_a_sample_again(tmp_path: Path) -> None:
    """With plain diffusers, from what the manifest says."""
    found = make(tmp_path, arguments={"guidance_scale": 2.0}, max_batch=1)
    pipe = toy()
    pipe.transformer.function = FUNCTIONS["fp32"]
    for (prompt, _), seed, latents in zip(
        found.samples, found.generator_seeds, found.reference, strict=True
    ):
        drawn = pipe(
            found.prompts[prompt],
            generator=torch.Generator("cpu").manual_seed(seed),
            num_inference_steps=found.steps,
            output_type="latent",
            **found.manifest["workload"]["arguments"],
        ).images
        assert torch.equal(drawn.flatten(), torch.from_numpy(latents))


def test_encoders_run_first_and_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denoisers come when prompts have been encoded; the bytes are those of a whole pipeline."""
    make(tmp_path / "whole")
    staged = setup()
    pipe, order = staged.loaded.pipeline, list[str]()
    denoiser = pipe.transformer
    pipe.transformer = toy().transformer.to("meta")

    def later() -> dict[str, torch.nn.Module]:
        order.append("later")
        assert pipe.text_encoder.scale.numel() == 0
        return {"transformer": denoiser}

    encode = type(pipe).encode_prompt

    def encoding(*args: Any) -> torch.Tensor:
        order.append("encode")
        return encode(*args)

    monkeypatch.setattr(type(pipe), "encode_prompt", encoding)
    loaded = dataclasses.replace(staged.loaded, later=later)
    record_setup(dataclasses.replace(staged, loaded=loaded), tmp_path / "staged")
    # two chunks: their runs, the floor of four and two samples one by one, and the replicates: a
    # batch of two samples, and one that the floor has had
    assert order == ["encode"] * (2 + 4 + 2 + 1) + ["later"]
    assert contents(tmp_path / "staged") == contents(tmp_path / "whole")

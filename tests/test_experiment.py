"""Experiments, and the options that are made from them: the same defaults, checks and words."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from tmpdiff_bench.commands import ArgumentParser
from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.experiment import Experiment, option_of
from tmpdiff_bench.options import add_options, experiment, given
from tmpdiff_bench.plan import PrecisionPlan


def parsed(*argv: str, **defaults: Any) -> argparse.Namespace:
    parser = ArgumentParser()
    add_options(parser, **defaults)
    return parser.parse_args(list(argv))


def test_command_and_library_have_the_same_defaults() -> None:
    assert experiment(parsed("--model", "sd3")) == Experiment("sd3")
    assert given(parsed("--model", "sd3")) == ["--model"]


def test_every_field_has_an_option_and_help() -> None:
    parser = ArgumentParser()
    add_options(parser)
    shown = " ".join(parser.format_help().split())
    for f in fields(Experiment):
        assert option_of(f.name) in shown
        assert f.metadata["help"].split("(")[0].split("-")[0].strip()[:30] in shown


def test_defaults_of_a_command_are_shown_and_taken() -> None:
    own: dict[str, Any] = {"levels": ("fp32", "w8a8", "w4a4"), "num_prompts": 8}
    assert experiment(parsed("--model", "sd3", **own)) == Experiment("sd3", **own)
    asked = parsed("--model", "sd3", "--num-prompts", "3", "--dtype", "bf16", **own)
    found = experiment(asked)
    assert (found.num_prompts, found.levels) == (3, ("bf16", "w8a8", "w4a4"))


numbers = st.integers(1, 10**6)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "steps": st.integers(1, 100),
    "num_prompts": numbers,
    "num_seeds": st.integers(1, 1000),
    "seed": st.integers(0, 2**31),
    "max_batch": numbers,
    "vae_tile": numbers,
    "levels": st.sampled_from([("fp32", "w4a4"), ("bf16", "w8a8", "mxfp4+lr8")]),
    "metrics": st.sampled_from([("psnr",), ("ssim", "lpips-scenes")]),
    "residency": st.sampled_from(["resident", "offload", "derive"]),
    "capture": st.sampled_from(["terminal", "trajectory"]),
    "scheduler": st.sampled_from(["EulerDiscreteScheduler:use_karras_sigmas=true"]),
}


@drawn(st.fixed_dictionaries({}, optional=VALUES))
def test_options_are_read_as_fields(values: dict[str, Any]) -> None:
    argv = ["--model", "sd3"]
    for name, value in values.items():
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        argv += [option_of(name), text]
    assert experiment(parsed(*argv)) == Experiment("sd3", **values)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3.5", 3.5),
        ("1024", 1024),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('"8"', "8"),
        ("a cat, sitting", "a cat, sitting"),
        ("x=y", "x=y"),
        ("", ""),
    ],
)
def test_values_of_call_arguments(text: str, value: object) -> None:
    found = experiment(parsed("--model", "sd3", "--call", f"a={text}", "--call", "b=1"))
    assert found.call == {"a": value, "b": 1}
    assert type(found.call["a"]) is type(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": None}, "name a model by --model, or weights by --weights"),
        ({"steps": 0}, "--steps is 0: at least 1 is needed"),
        ({"num_seeds": 0}, "--num-seeds is 0"),
        ({"max_batch": -1}, "--max-batch is -1"),
        ({"state_memory": 0}, "--state-memory is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**32 - 1}, "--seed is 4294967295"),
        ({"levels": ("fp32",)}, "at least one low level"),
        ({"levels": ("fp32", "w4a5")}, "unknown level 'w4a5': did you mean 'w4a"),
        ({"levels": ("fp32", "w4a4", "w4a4")}, "named twice in fp32,w4a4,w4a4"),
        ({"dtype": "bf61"}, "unknown dtype 'bf61': did you mean 'bf16'"),
        ({"dtype": "bf16", "levels": ("fp32", "w4a4")}, "name bf16 in its place"),
        ({"capture": "all"}, "unknown capture 'all'"),
        ({"residency": "disk"}, "unknown residency 'disk'"),
        ({"quantized": ()}, "--quantized names no layers"),
        ({"prompts": ["a"], "prompt_set": "coco"}, "exclude one another"),
        ({"call": {"guidance scale": 1}}, "'guidance scale' is not the name of an argument"),
        ({"call": {"guidance_scale": float("inf")}}, "--call guidance_scale is inf"),
        ({"steps": 2, "plans": ("w4a4*3",)}, "--plan w4a4*3 has 3 steps, the experiment 2"),
        ({"steps": 2, "plans": ("bf16*2",)}, "--plan bf16*2 uses bf16"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Experiment(**{"model": "sd3", **values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--call", "guidance_scale"], "is not NAME=VALUE"),
        (["--call", "=3"], "is not NAME=VALUE"),
        (["--call", "a=Infinity"], "Infinity is no finite number"),
        (["--plan", "w4a4*x"], "w4a4*x"),
        (["--steps", "1e3"], "'1e3' is not a whole number"),
        (["--guidance", "4"], "unrecognized arguments: --guidance 4"),
    ],
)
def test_bad_options_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parsed("--model", "sd3", *argv)
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


def test_an_argument_is_given_once() -> None:
    with pytest.raises(UsageError, match="--call a is given twice"):
        experiment(parsed("--model", "sd3", "--call", "a=1", "--call", "a=2"))


def test_plans_and_torchs_names() -> None:
    argv = ["--model", "sd3", "--steps", "2", "--plan", "w4a4*2", "--plan", "w4a4 w4a4"]
    found = experiment(parsed(*argv, "--levels", "bf16,w4a4", "--torch-dtype", "bfloat16"))
    assert found.dtype == "bf16"
    assert found.plans == (PrecisionPlan(("w4a4", "w4a4")),)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom tmpdiff_bench.options import add_options\n"
        "from tmpdiff_bench.experiment import Experiment\nExperiment('sd3')\n"
        "print(sorted({'torch', 'diffusers', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

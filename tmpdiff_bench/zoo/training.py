"""The one training loop behind every embedded model: resumable, seeded, logged.

A `Part` says what is trained and what its loss is; `train` owns optimisation, weight averaging,
the learning-rate schedule (linear warm-up, constant, linear decay at the end, so that a run can be
prolonged), checkpoints and the loss log. Iteration i draws everything from the seed (seed, i): a
run killed and resumed sees the batches that it would have seen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
_MUON_STATE = ("momentum_buffer",)


class Part(Protocol):
    """What is trained together."""

    name: str
    modules: nn.ModuleDict

    def is_hidden_matrix(self, parameter: str) -> bool:
        """Whether a parameter is a hidden layer's matrix, to be trained by Muon."""
        ...

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor: ...

    def evaluate(self) -> dict[str, float]:
        """Validation figures of the averaged weights (called with them in place)."""
        ...


@dataclass(frozen=True)
class Schedule:
    """Optimiser settings: Muon (Jordan et al. 2024) for hidden matrices, with updates scaled to
    match AdamW's (Liu et al. 2025), and AdamW (Loshchilov & Hutter 2019) for all else.
    """

    iterations: int
    learning_rate: float
    muon_factor: float = 2.0
    warm_up: int = 200
    decay_fraction: float = 0.25
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    average_decay: float = 0.999

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration."""
        ramp = min(1.0, (iteration + 1) / self.warm_up)
        left = (self.iterations - iteration) / max(1.0, self.decay_fraction * self.iterations)
        return self.learning_rate * min(ramp, 1.0, left)


def train(
    part: Part,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    evaluate_every: int = 500,
    checkpoint_every: int = 250,
) -> dict[str, float]:
    """Train `part` up to `schedule.iterations`, going on from `folder` if a run is there.

    Leaves averaged weights in `part.modules` and returns the last validation figures. Writes
    `state.safetensors` (weights, averages, moments), `state.json` and `log.jsonl` into `folder`.

    Raises:
        UsageError: `folder` holds a run of another part or seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(part.modules.named_parameters())
    average = {name: p.detach().clone() for name, p in parameters.items()}
    optimisers = _optimisers(part, schedule, parameters)
    start, seconds = _resume(folder, part, seed, parameters, average, optimisers)
    with (
        (folder / "log.jsonl").open("a", encoding="utf-8") as log,
        tqdm(total=schedule.iterations, initial=start, desc=part.name, unit="it") as progress,
    ):
        figures: dict[str, float] = {}
        mean_loss, since = 0.0, time.perf_counter()
        for iteration in range(start, schedule.iterations):
            for optimiser, factor in zip(optimisers, (1.0, schedule.muon_factor), strict=False):
                for group in optimiser.param_groups:
                    group["lr"] = factor * schedule.rate(iteration)
            generator = torch.Generator().manual_seed((seed << 32) + iteration)
            part.modules.train()
            loss = part.loss(iteration, generator)
            for parameter in parameters.values():
                parameter.grad = None
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), schedule.clip_norm)
            for optimiser in optimisers:
                optimiser.step()
            keep = min(schedule.average_decay, (iteration + 1) / (iteration + 10))
            torch._foreach_lerp_(
                list(average.values()), [p.detach() for p in parameters.values()], 1 - keep
            )
            value = float(loss.detach())
            mean_loss = value if iteration == start else 0.98 * mean_loss + 0.02 * value
            progress.update()
            last = iteration + 1 == schedule.iterations
            if (iteration + 1) % 50 == 0 or last:
                progress.set_postfix(loss=f"{mean_loss:.4f}")
            if (iteration + 1) % checkpoint_every == 0 or last:
                spent = seconds + time.perf_counter() - since
                _save(
                    folder,
                    part,
                    seed,
                    iteration + 1,
                    spent,
                    schedule,
                    parameters,
                    average,
                    optimisers,
                )
                _write_log(log, iteration + 1, spent, loss=mean_loss)
            if (iteration + 1) % evaluate_every == 0 or last:
                with Averaged(parameters, average):
                    part.modules.eval()
                    with torch.no_grad():
                        figures = part.evaluate()
                progress.write(f"{part.name} {iteration + 1}: {_text(figures)}")
                _write_log(log, iteration + 1, seconds + time.perf_counter() - since, **figures)
    _copy(average, parameters)
    part.modules.eval()
    return figures


def _optimisers(
    part: Part, schedule: Schedule, parameters: Mapping[str, nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """AdamW, then Muon where the part has hidden matrices."""
    hidden = {name for name in parameters if part.is_hidden_matrix(name)}
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [p for name, p in parameters.items() if name not in hidden],
            lr=schedule.learning_rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
        )
    ]
    if hidden:
        found.append(
            torch.optim.Muon(
                [parameters[name] for name in parameters if name in hidden],
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


def _owner(
    optimisers: Sequence[torch.optim.Optimizer], parameter: nn.Parameter
) -> torch.optim.Optimizer:
    return next(
        o for o in optimisers if any(parameter is p for g in o.param_groups for p in g["params"])
    )


class Averaged:
    """Context in which the parameters hold the averaged weights."""

    def __init__(self, parameters: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> None:
        self._parameters, self._average = parameters, average

    def __enter__(self) -> None:
        self._kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        _copy(self._average, self._parameters)

    def __exit__(self, *_: object) -> None:
        _copy(self._kept, self._parameters)


def load_average(part: Part, folder: Path) -> dict[str, object]:
    """Put the averaged weights of a run into `part.modules`; returns the run's `state.json`.

    Raises:
        UsageError: there is no run in `folder`.
    """
    if not (folder / "state.json").exists():
        raise UsageError(f"there is no training run in {folder}: train {part.name} first")
    tensors = load_file(folder / "state.safetensors")
    average = {
        k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")
    }
    _copy(average, dict(part.modules.named_parameters()))
    part.modules.eval()
    state: dict[str, object] = json.loads((folder / "state.json").read_text())
    return state


def read_log(folder: Path) -> Iterator[dict[str, float]]:
    """The records of a run's log, in order."""
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(source[name])


def _save(
    folder: Path,
    part: Part,
    seed: int,
    iteration: int,
    seconds: float,
    schedule: Schedule,
    parameters: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter.detach().contiguous()
        tensors[f"average/{name}"] = average[name].contiguous()
        for moment, value in _owner(optimisers, parameter).state[parameter].items():
            tensors[f"{moment}/{name}"] = torch.as_tensor(value).contiguous()
    # the iteration travels inside the tensor file, so that no crash can part the two
    temporary = folder / "state.safetensors.tmp"
    save_file(tensors, temporary, metadata={"iteration": str(iteration), "seconds": str(seconds)})
    os.replace(temporary, folder / "state.safetensors")
    state = {
        "part": part.name,
        "seed": seed,
        "iteration": iteration,
        "seconds": round(seconds, 1),
        "schedule": asdict(schedule),
        "torch": torch.__version__,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _resume(
    folder: Path,
    part: Part,
    seed: int,
    parameters: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
) -> tuple[int, float]:
    if not (folder / "state.safetensors").exists():
        return 0, 0.0
    state = json.loads((folder / "state.json").read_text())
    if (state["part"], state["seed"]) != (part.name, seed):
        raise UsageError(
            f"{folder} holds a run of {state['part']!r} with seed {state['seed']}, not of "
            f"{part.name!r} with seed {seed}: name another folder with --runs"
        )
    from safetensors import safe_open

    with safe_open(folder / "state.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / "state.safetensors")
    _copy(
        {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith("weight/")}, parameters
    )
    _copy({k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith("average/")}, average)
    for name, parameter in parameters.items():
        owner = _owner(optimisers, parameter)
        known = _ADAM_STATE if isinstance(owner, torch.optim.AdamW) else _MUON_STATE
        found = {m: tensors[f"{m}/{name}"].clone() for m in known if f"{m}/{name}" in tensors}
        if found:
            owner.state[parameter] = found
    return int(metadata["iteration"]), float(metadata["seconds"])


def _write_log(log: TextIO, iteration: int, seconds: float, **figures: float) -> None:
    record = {"iteration": iteration, "seconds": round(seconds, 1)}
    record |= {name: float(f"{value:.6g}") for name, value in figures.items()}
    print(json.dumps(record), file=log, flush=True)


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())

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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TextIO

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from tmpdiff_bench.errors import UsageError


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
    run = _Run(part, schedule, folder, seed)
    start, seconds = run.resume()
    with (
        (folder / "log.jsonl").open("a", encoding="utf-8") as log,
        tqdm(total=schedule.iterations, initial=start, desc=part.name, unit="it") as progress,
    ):
        figures: dict[str, float] = {}
        mean_loss, since = 0.0, time.perf_counter()
        for iteration in range(start, schedule.iterations):
            value = run.step(iteration)
            mean_loss = value if iteration == start else 0.98 * mean_loss + 0.02 * value
            progress.update()
            last = iteration + 1 == schedule.iterations
            if (iteration + 1) % 50 == 0 or last:
                progress.set_postfix(loss=f"{mean_loss:.4f}")
            if (iteration + 1) % checkpoint_every == 0 or last:
                spent = seconds + time.perf_counter() - since
                run.save(iteration + 1, spent)
                _write_log(log, iteration + 1, spent, loss=mean_loss)
            if (iteration + 1) % evaluate_every == 0 or last:
                figures = run.evaluate()
                words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                progress.write(f"{part.name} {iteration + 1}: {words}")
                _write_log(log, iteration + 1, seconds + time.perf_counter() - since, **figures)
    _copy(run.average, run.parameters)
    part.modules.eval()
    return figures


class _Run:
    """The weights of a part, their averages and the optimiser of each; the folder of the run."""

    def __init__(self, part: Part, schedule: Schedule, folder: Path, seed: int) -> None:
        self.part, self.schedule, self.folder, self.seed = part, schedule, folder, seed
        self.parameters = dict(part.modules.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        hidden = {name: p for name, p in self.parameters.items() if part.is_hidden_matrix(name)}
        adam = torch.optim.AdamW(
            [p for name, p in self.parameters.items() if name not in hidden],
            lr=schedule.learning_rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
        )
        self._factors: dict[torch.optim.Optimizer, float] = {adam: 1.0}
        self._optimisers: dict[str, torch.optim.Optimizer] = dict.fromkeys(self.parameters, adam)
        if hidden:
            muon = torch.optim.Muon(
                hidden.values(),
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._factors[muon] = schedule.muon_factor
            self._optimisers |= dict.fromkeys(hidden, muon)

    def step(self, iteration: int) -> float:
        """Take one step; returns the loss before it."""
        for optimiser, factor in self._factors.items():
            for group in optimiser.param_groups:
                group["lr"] = factor * self.schedule.rate(iteration)
        generator = torch.Generator().manual_seed((self.seed << 32) + iteration)
        self.part.modules.train()
        loss = self.part.loss(iteration, generator)
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.clip_norm)
        for optimiser in self._factors:
            optimiser.step()
        keep = min(self.schedule.average_decay, (iteration + 1) / (iteration + 10))
        weights = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - keep)
        return float(loss.detach())

    def evaluate(self) -> dict[str, float]:
        """Validation figures, with the averaged weights in place."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self.average, self.parameters)
        try:
            self.part.modules.eval()
            with torch.no_grad():
                return self.part.evaluate()
        finally:
            _copy(kept, self.parameters)

    def save(self, iteration: int, seconds: float) -> None:
        """Write what `resume` reads."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach().contiguous()
            tensors[f"average/{name}"] = self.average[name].contiguous()
            for moment, value in self._optimisers[name].state[parameter].items():
                tensors[f"{moment}/{name}"] = torch.as_tensor(value).contiguous()
        # the iteration travels inside the tensor file, so that no crash can part the two
        temporary = self.folder / "state.safetensors.tmp"
        progress = {"iteration": str(iteration), "seconds": str(seconds)}
        save_file(tensors, temporary, metadata=progress)
        os.replace(temporary, self.folder / "state.safetensors")
        state = {
            "part": self.part.name,
            "seed": self.seed,
            "iteration": iteration,
            "seconds": round(seconds, 1),
            "schedule": asdict(self.schedule),
            "torch": torch.__version__,
        }
        text = json.dumps(state, indent=2) + "\n"
        (self.folder / "state.json").write_text(text, encoding="utf-8")

    def resume(self) -> tuple[int, float]:
        """Take up what was saved; returns the iterations done and the seconds that they took."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0, 0.0
        state = json.loads((self.folder / "state.json").read_text())
        if (state["part"], state["seed"]) != (self.part.name, self.seed):
            raise UsageError(
                f"{self.folder} holds a run of {state['part']!r} with seed {state['seed']}, not of "
                f"{self.part.name!r} with seed {self.seed}: name another folder with --runs"
            )
        with safe_open(path, framework="pt") as file:
            progress = file.metadata()
        saved: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(path).items():
            kind, _, name = key.partition("/")
            saved.setdefault(kind, {})[name] = value
        _copy(saved.pop("weight"), self.parameters)
        _copy(saved.pop("average"), self.average)
        for name, parameter in self.parameters.items():
            moments = {kind: found[name] for kind, found in saved.items() if name in found}
            if moments:
                self._optimisers[name].state[parameter] = moments
        return int(progress["iteration"]), float(progress["seconds"])


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


def _write_log(log: TextIO, iteration: int, seconds: float, **figures: float) -> None:
    record = {"iteration": iteration, "seconds": round(seconds, 1)}
    record |= {name: float(f"{value:.6g}") for name, value in figures.items()}
    print(json.dumps(record), file=log, flush=True)

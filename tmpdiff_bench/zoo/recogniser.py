"""A small network that reads the objects back from an image, cell by cell.

With it "does the image still show what the prompt says" is a number, as GenEval is for large models
(Ghosh et al. 2023). It is trained on renders, blurred, noised and passed through the VAE, so that
it judges content and not texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from tmpdiff_bench.errors import UsageError
from tmpdiff_bench.files import data_folder
from tmpdiff_bench.zoo.captions import Mention, Requirement
from tmpdiff_bench.zoo.scenes import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    SceneObject,
    Scenes,
    render,
    sample_scenes,
)

EMPTY = len(SHAPES)  # class of a cell without an object
_HEADS = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS),
    "size": len(SIZES),
    "background": len(BACKGROUNDS),
}


_WINDOW, _STRIDE = 24, 20  # three windows across cover 64 pixels, one cell in each


class Recogniser(nn.Module):
    """Images (n, 3, 64, 64) in [0, 1] to class scores of the nine cells and of the background.

    One convolutional network looks at each cell; `features` runs the same convolutions over whole
    images, for perceptual metrics.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for before, width in zip((3, *widths), widths, strict=False):
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.GroupNorm(8, width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
                    nn.GroupNorm(8, width),
                    nn.ReLU(),
                )
            )
        flat = widths[-1] * (_WINDOW // 2 ** len(widths)) ** 2
        self.heads = nn.ModuleDict({name: nn.Linear(flat, n) for name, n in _HEADS.items()})

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of each stage for images (n, 3, H, W): 32, 64, 96 wide at H/2, H/4, H/8."""
        x, found = images * 2 - 1, []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Scores (n, 9, k) of the classes of `shape`, `colour`, `size` and `background`."""
        windows = images.unfold(2, _WINDOW, _STRIDE).unfold(3, _WINDOW, _STRIDE)
        windows = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        flat = self.features(windows)[-1].flatten(1)
        return {
            name: head(flat).view(len(images), GRID**2, -1) for name, head in self.heads.items()
        }


@dataclass(frozen=True)
class Reading:
    """What the recogniser sees in one image."""

    objects: tuple[SceneObject, ...]
    background: int


@torch.no_grad()
def read(recogniser: Recogniser, images: Tensor) -> list[Reading]:
    """The scenes shown by images (n, 3, 64, 64) in [0, 1]."""
    readings = []
    for chunk in images.split(64):
        scores = recogniser(chunk)
        shape, colour, size = (scores[k].argmax(-1).tolist() for k in ("shape", "colour", "size"))
        background = scores["background"].mean(1).argmax(-1).tolist()
        for i in range(len(chunk)):
            seen = tuple(
                SceneObject(shape[i][cell], colour[i][cell], size[i][cell], cell)
                for cell in range(GRID**2)
                if shape[i][cell] != EMPTY
            )
            readings.append(Reading(seen, background[i]))
    return readings


@dataclass(frozen=True)
class Verdict:
    """How far an image shows what was asked: `found` of `asked` objects, and whether `all` holds
    (every object, no other object, the relation and the background).
    """

    asked: int
    found: int
    all: bool


def judge(requirement: Requirement, reading: Reading) -> Verdict:
    """Match mentions with seen objects: an object counts when shape, colour and what else was said
    of it (size, place) are right; each seen object serves one mention.
    """
    free = list(reading.objects)
    matched: list[list[SceneObject]] = []
    # the most specific mentions choose first, which is optimal here: mentions of one caption say
    # equally much, and differ in shape or colour or place
    for mention in requirement.mentions:
        mine = [o for o in free if _fits(mention, o)][: mention.count]
        for o in mine:
            free.remove(o)
        matched.append(mine)
    asked = sum(m.count for m in requirement.mentions)
    found = sum(map(len, matched))
    complete = found == asked and len(reading.objects) == asked
    if requirement.relation is not None and complete:
        complete = holds(requirement.relation, matched[0][0], matched[1][0])
    if requirement.background is not None:
        complete = complete and reading.background == requirement.background
    return Verdict(asked, found, complete)


def _fits(mention: Mention, o: SceneObject) -> bool:
    return (
        (mention.shape, mention.colour) == (o.shape, o.colour)
        and mention.size in (None, o.size)
        and mention.cell in (None, o.cell)
    )


def holds(relation: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether `a` is left of, right of, above or below `b`."""
    across, down = a.cell % GRID - b.cell % GRID, a.cell // GRID - b.cell // GRID
    return {"left": across < 0, "right": across > 0, "above": down < 0, "below": down > 0}[relation]


class RecogniserPart:
    """Trains the recogniser on renders, half of them disturbed (VAE, blur, noise)."""

    name = "recogniser"

    def __init__(self, vae: AutoencoderKL | None, *, batch: int = 64, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.recogniser = Recogniser()
        self.modules = nn.ModuleDict({"recogniser": self.recogniser})
        self._vae, self._batch = vae, batch
        self._validation = sample_scenes(1000, seed=seed, split="validation")

    def is_hidden_matrix(self, parameter: str) -> bool:
        return False

    def loss(self, iteration: int, generator: torch.Generator) -> Tensor:
        drawn = int(torch.randint(2**31, (), generator=generator))
        scenes = sample_scenes(self._batch, seed=drawn, split="recogniser")
        images = torch.from_numpy(render(scenes))
        third = self._batch // 3
        images[:third] = self._through_vae(images[:third])
        blurred = F.avg_pool2d(F.pad(images[-third:], (1, 1, 1, 1), mode="replicate"), 3, 1)
        noise = torch.randn(images.shape, generator=generator)
        strength = 0.08 * torch.rand((len(images), 1, 1, 1), generator=generator)
        images = torch.cat([images[:-third], blurred]) + strength * noise
        with torch.autocast("cpu", torch.bfloat16):
            scores = self.recogniser(images)
        return recogniser_loss(scores, cell_targets(scenes))

    def _through_vae(self, images: Tensor) -> Tensor:
        if self._vae is None:
            return images
        with torch.no_grad():
            mean = self._vae.encode(images * 2 - 1).latent_dist.mean
            decoded: Tensor = self._vae.decode(mean).sample
            return (decoded / 2 + 0.5).clamp(0, 1)

    def evaluate(self) -> dict[str, float]:
        images = torch.from_numpy(render(self._validation))
        figures = {"render_accuracy": self._accuracy(images)}
        if self._vae is not None:
            decoded = torch.cat([self._through_vae(x) for x in images[:256].split(64)])
            figures["decoded_accuracy"] = self._accuracy(decoded)
        return figures

    def _accuracy(self, images: Tensor) -> float:
        """Share of true objects read with shape, colour, size and cell all right."""
        right = total = 0
        for row, reading in enumerate(read(self.recogniser, images)):
            truth = set(self._validation.objects(row))
            right += len(truth & set(reading.objects))
            total += len(truth)
        return right / total


def cell_targets(scenes: Scenes) -> dict[str, Tensor]:
    """Class of every cell: `shape`, `colour`, `size`, `background` (n, 9); -100: not defined."""
    n = len(scenes)
    targets = {name: torch.full((n, GRID**2), -100) for name in ("colour", "size")}
    targets["shape"] = torch.full((n, GRID**2), EMPTY)
    for slot in range(MAX_OBJECTS):
        rows = torch.from_numpy(scenes.count > slot).nonzero()[:, 0]
        cells = torch.from_numpy(scenes.cell[:, slot])[rows]
        for name in ("shape", "colour", "size"):
            targets[name][rows, cells] = torch.from_numpy(getattr(scenes, name)[:, slot])[rows]
    targets["background"] = torch.from_numpy(scenes.background)[:, None].expand(n, GRID**2)
    return targets


def recogniser_loss(scores: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Sum of the cross-entropies of all heads, over the cells where each is defined."""
    losses = [
        F.cross_entropy(
            scores[name].float().flatten(0, 1), targets[name].flatten(), ignore_index=-100
        )
        for name in scores
    ]
    return torch.stack(losses).sum()


def load_recogniser() -> Recogniser:
    """The recogniser that ships with the library."""
    path = data_folder() / "models" / "recogniser" / "model.safetensors"
    if not path.is_file():
        raise UsageError(
            "the recogniser's weights are not in this installation: reinstall the package, or "
            "train them with `python -m tmpdiff_bench.zoo train --model recogniser`"
        )
    with torch.device("meta"):  # built elsewhere it would draw weights from the global stream
        recogniser = Recogniser()
    weights = {name: weight.float() for name, weight in load_file(path).items()}
    recogniser.load_state_dict(weights, assign=True)
    return recogniser.eval()

"""Scenes: procedurally rendered 64 px images of one to three flat-coloured objects.

A scene lays its objects out on a 3 x 3 grid of cells, one object to a cell, so that what a picture
shows can be read back exactly (by `zoo.recogniser`) and compared with what a caption asked for.
Shapes are drawn from signed distance functions with a one-pixel ramp, which is box-filter
anti-aliasing to first order (Inigo Quilez, "2D distance functions").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 64
GRID = 3
MAX_OBJECTS = 3
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black", "pink")

# sRGB values; object colours stay apart from one another and from every background.
COLOUR_RGB = np.array(
    [(220, 40, 40), (245, 135, 30), (250, 215, 40), (40, 160, 70), (45, 95, 215), (140, 60, 180)],
    dtype=np.float32,
) / np.float32(255)
BACKGROUND_RGB = np.array(
    [(250, 250, 250), (150, 150, 150), (25, 25, 25), (250, 190, 205)], dtype=np.float32
) / np.float32(255)

_CELL = IMAGE_SIZE / GRID
_RADII = np.array([6.0, 9.5], dtype=np.float32)  # small, large; pixels
_RADIUS_JITTER = 0.5
_PLACE_JITTER = 1.0
_COLOUR_JITTER = 0.025
_WINDOW = 22  # pixels around an object's centre that its drawing can touch


class SceneObject(NamedTuple):
    """One object: indices into `SHAPES`, `COLOURS`, `SIZES`, and its cell (row-major, 0..8)."""

    shape: int
    colour: int
    size: int
    cell: int


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes as arrays; row i is scene i.

    `count` (n,) objects in use; `shape`, `colour`, `size`, `cell` (n, 3) indices; `background`
    (n,); `jitter` (n, 3, 6) uniform in [-1, 1]: x, y, radius, r, g, b of each object.
    """

    count: NDArray[np.int64]
    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    size: NDArray[np.int64]
    cell: NDArray[np.int64]
    background: NDArray[np.int64]
    jitter: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Scenes:
        return Scenes(**{name: values[rows] for name, values in vars(self).items()})

    def objects(self, row: int) -> tuple[SceneObject, ...]:
        """The objects of one scene, in reading order of their cells."""
        found = [
            SceneObject(*(int(a[row, i]) for a in (self.shape, self.colour, self.size, self.cell)))
            for i in range(int(self.count[row]))
        ]
        return tuple(sorted(found, key=lambda o: o.cell))

    def digest(self) -> str:
        """sha256 over every array: names a split of scenes exactly."""
        hasher = hashlib.sha256()
        for name, values in sorted(vars(self).items()):
            hasher.update(name.encode())
            hasher.update(np.ascontiguousarray(values).tobytes())
        return hasher.hexdigest()


def sample_scenes(n: int, *, seed: int, split: str = "train") -> Scenes:
    """Draw `n` scenes; deterministic in (`seed`, `split`, `n`), and independent between splits.

    A quarter of the scenes repeat one kind of object (so that "three red circles" occurs).
    """
    stream = int.from_bytes(hashlib.sha256(f"scenes:{split}".encode()).digest()[:8], "big")
    rng = np.random.default_rng([stream, seed])
    slots = (n, MAX_OBJECTS)
    count = rng.integers(1, MAX_OBJECTS + 1, n)
    shape = rng.integers(0, len(SHAPES), slots)
    colour = rng.integers(0, len(COLOURS), slots)
    size = rng.integers(0, len(SIZES), slots)
    cell = np.argsort(rng.random((n, GRID * GRID)), axis=1)[:, :MAX_OBJECTS]
    alike = rng.random(n) < 0.25
    for values in (shape, colour, size):
        values[alike] = values[alike, :1]
    # a pair of one kind beside a third object of another: "two red circles and one green ring"
    odd = alike & (count == MAX_OBJECTS) & (rng.random(n) < 0.5)
    shape[odd, -1] = (shape[odd, -1] + rng.integers(1, len(SHAPES), odd.sum())) % len(SHAPES)
    colour[odd, -1] = rng.integers(0, len(COLOURS), odd.sum())
    jitter = rng.uniform(-1, 1, (*slots, 6)).astype(np.float32)
    background = rng.integers(0, len(BACKGROUNDS), n)
    return Scenes(count, shape, colour, size, cell.astype(np.int64), background, jitter)


def render(scenes: Scenes) -> NDArray[np.float32]:
    """Images of shape (n, 3, 64, 64) in [0, 1]."""
    n = len(scenes)
    images = np.empty((n, IMAGE_SIZE + 2 * _WINDOW, IMAGE_SIZE + 2 * _WINDOW, 3), dtype=np.float32)
    images[:] = BACKGROUND_RGB[scenes.background][:, None, None, :]
    offsets = np.arange(_WINDOW, dtype=np.float32)
    for slot in range(MAX_OBJECTS):
        for kind in range(len(SHAPES)):
            rows = np.flatnonzero((scenes.count > slot) & (scenes.shape[:, slot] == kind))
            if not rows.size:
                continue
            jitter = scenes.jitter[rows, slot]
            radius = _RADII[scenes.size[rows, slot]] + _RADIUS_JITTER * jitter[:, 2]
            cell = scenes.cell[rows, slot]
            cx = (cell % GRID + 0.5) * _CELL + _PLACE_JITTER * jitter[:, 0]
            cy = (cell // GRID + 0.5) * _CELL + _PLACE_JITTER * jitter[:, 1]
            left = np.floor(cx).astype(np.int64) - _WINDOW // 2
            top = np.floor(cy).astype(np.int64) - _WINDOW // 2
            # pixel centres relative to the object's centre, (m, 1, w) and (m, w, 1)
            x = (left[:, None] + offsets + 0.5 - cx[:, None])[:, None, :]
            y = (top[:, None] + offsets + 0.5 - cy[:, None])[:, :, None]
            distance = _DISTANCES[SHAPES[kind]](
                x.astype(np.float32), y.astype(np.float32), radius[:, None, None].astype(np.float32)
            )
            coverage = np.clip(0.5 - distance, 0, 1)[..., None]
            tint = np.clip(
                COLOUR_RGB[scenes.colour[rows, slot]] + _COLOUR_JITTER * jitter[:, 3:], 0, 1
            )[:, None, None, :]
            # the padded canvas lets a window hang over the edge without a special case
            ys = (top[:, None] + _WINDOW + np.arange(_WINDOW))[:, :, None]
            xs = (left[:, None] + _WINDOW + np.arange(_WINDOW))[:, None, :]
            below = images[rows[:, None, None], ys, xs]
            images[rows[:, None, None], ys, xs] = below + coverage * (tint - below)
    inner = slice(_WINDOW, _WINDOW + IMAGE_SIZE)
    return np.ascontiguousarray(images[:, inner, inner].transpose(0, 3, 1, 2))


Array = NDArray[np.float32]


def _norm(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y)


def _circle(x: Array, y: Array, r: Array) -> Array:
    return _norm(x, y) - r


def _ring(x: Array, y: Array, r: Array) -> Array:
    distance: Array = np.abs(_norm(x, y) - 0.74 * r) - 0.26 * r
    return distance


def _square(x: Array, y: Array, r: Array) -> Array:
    return _box(x, y, 0.86 * r, 0.86 * r)


def _cross(x: Array, y: Array, r: Array) -> Array:
    return np.minimum(_box(x, y, r, 0.34 * r), _box(x, y, 0.34 * r, r))


def _box(x: Array, y: Array, half_width: Array, half_height: Array) -> Array:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = _norm(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0)


def _polygon(x: Array, y: Array, vertices: NDArray[np.float32], r: Array) -> Array:
    """Signed distance to a polygon with unit vertices (k, 2) scaled by `r`."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, dtype=np.float32)
    inside = np.zeros(nearest.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        px, py, ex, ey = x - ax * r, y - ay * r, (bx - ax) * r, (by - ay) * r
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        # crossing number of the horizontal ray; `ey` is never zero where the test below holds
        straddles = (ay * r > y) != (by * r > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= straddles & (px < ex * py / ey)
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)


def _unit_polygon(radii: tuple[float, ...], points: int) -> NDArray[np.float32]:
    angles = -np.pi / 2 + 2 * np.pi * np.arange(points) / points
    reach = np.resize(radii, points)
    return np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1).astype(np.float32)


_TRIANGLE = _unit_polygon((1.1,), 3) + np.array([0, 0.2], dtype=np.float32)
_STAR = _unit_polygon((1.1, 0.46), 10)


def _triangle(x: Array, y: Array, r: Array) -> Array:
    return _polygon(x, y, _TRIANGLE, r)


def _star(x: Array, y: Array, r: Array) -> Array:
    return _polygon(x, y, _STAR, r)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}

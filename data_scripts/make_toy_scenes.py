"""Turns a seed into a class of toy cars, rendered from many views in the layout that `jaxmeta.data.shapenet` reads.

A car is a handful of convex solids. A ray meets a convex solid in one interval, from the last face that it enters by to
the first that it leaves by, so the renderer knows nothing but half-spaces. Every face is flat and has one shade, which
does not depend on the view.

Frame: the car faces +x, z is up, the origin is the middle of its bounding box, and nothing is further than about 1 off.
"""

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, UInt8
from matplotlib.colors import hsv_to_rgb
from tqdm import tqdm

from jaxmeta.cameras import orbit_pose, pixel_rays
from jaxmeta.data.shapenet import write_scene, write_splits
from jaxmeta.errors import InputError

CLASS_NAME = "toycar"
CAMERA_ANGLE_X = 0.6911112
CAMERA_RADIUS = 4.03
ELEVATIONS = np.radians((5.0, 70.0))
SUN = np.array([0.45, -0.55, 0.70]) / np.linalg.norm([0.45, -0.55, 0.70])
AMBIENT = 0.5
SUPERSAMPLING = 3  # rays a side of a pixel
MAX_SIZE = 512
# A scene's split depends on its number alone, so a larger class keeps the splits of a smaller one; 15, 2 and 3 in 20.
SPLIT_CYCLE = ("train", "val", "test", *["train"] * 5, "test", *["train"] * 5, "val", "test", *["train"] * 4)

GLASS, TYRE, HUB, TRIM = (0.13, 0.17, 0.22), (0.10, 0.10, 0.11), (0.72, 0.73, 0.76), (0.17, 0.17, 0.18)
HEADLIGHT, TAILLIGHT, PLATE = (1.0, 0.97, 0.80), (0.85, 0.06, 0.06), (0.92, 0.92, 0.86)
PROUD = 0.008  # how far glass, lights and hubs stand out, in scene units
PILLAR = 0.035  # paint between two windows, in scene units
Colour = tuple[float, ...]


class Car(NamedTuple):
    """The measures of a car in scene units; x positions from its middle, heights above the ground."""

    length: float
    width: float
    height: float
    belt: float
    """Height of the bonnet, where the cabin begins."""
    cabin: tuple[float, float]
    """Rear and front of the cabin at the belt."""
    roof: tuple[float, float]
    """Rear and front of the roof."""
    wheel_radius: float
    wheels: tuple[float, float]
    """Positions of the rear and the front axle."""
    nose: float
    """How far the bonnet's edge lies behind the bumper."""
    has_bed: bool
    has_rear_windows: bool
    paint: Colour
    roof_paint: Colour


class Solids(NamedTuple):
    """Convex solids of equally many faces: `normal . point <= offset` for every face."""

    normals: Float[Array | np.ndarray, "*solids faces 3"]
    offsets: Float[Array | np.ndarray, "*solids faces"]
    colours: Float[Array | np.ndarray, "*solids 3"]


class Surface(NamedTuple):
    """What each ray meets first."""

    distance: Float[Array, "rays"]
    """Infinite where it meets nothing."""
    rgb: Float[Array, "3 rays"]


# ---- a random car ----------------------------------------------------------------------------------------------------

# As shares of the length: cabin rear, roof rear, roof front, cabin front; then the height.
_STYLES = {
    "sedan": (-0.36, -0.21, 0.05, 0.21, 0.335),
    "hatchback": (-0.475, -0.37, 0.04, 0.21, 0.365),
    "van": (-0.485, -0.465, 0.22, 0.36, 0.45),
    "pickup": (-0.11, -0.08, 0.10, 0.22, 0.385),
}


def sample_car(rng: np.random.Generator) -> Car:
    """Returns a random car of a random style."""
    style = rng.choice(list(_STYLES))
    *marks, height = np.array(_STYLES[style]) + rng.uniform(-1, 1, 5) * (0.01, 0.015, 0.025, 0.02, 0.02)
    length, belt, radius = rng.uniform((1.5, 0.54, 0.085), (1.72, 0.61, 0.10))
    width = length * rng.uniform(0.41, 0.47)
    paint, other_paint = _sample_paint(rng), _sample_paint(rng)
    cabin_rear, roof_rear, roof_front, cabin_front = (float(mark * length) for mark in marks)
    return Car(
        length=length,
        width=width,
        height=height * length,
        belt=belt * min(height, 0.38) * length,
        cabin=(cabin_rear, cabin_front),
        roof=(roof_rear, roof_front),
        wheel_radius=radius * length,
        wheels=(-length * rng.uniform(0.28, 0.32), length * rng.uniform(0.29, 0.33)),
        nose=length * rng.uniform(0.02, 0.07),
        has_bed=style == "pickup",
        has_rear_windows=style in ("sedan", "hatchback") or (style == "van" and rng.random() < 0.5),
        paint=paint,
        roof_paint=other_paint if rng.random() < 0.2 else paint,
    )


def _sample_paint(rng: np.random.Generator) -> Colour:
    hue, saturation, value, grey = rng.uniform((0, 0.6, 0.55, 0), (1, 0.95, 0.95, 1))
    return tuple(hsv_to_rgb((hue, 0.03 if grey < 0.25 else saturation, value)))


# ---- a car as solids -------------------------------------------------------------------------------------------------
# A frustum is the hull of two level rectangles, the lower first: rows (x0, x1, y0, y1, z).

Frustum = Float[np.ndarray, "2 5"]


def car_solids(car: Car) -> tuple[Solids, Solids]:
    """Returns a car's boxy parts and its wheels."""
    parts = [*_body(car), *_cabin(car), *_lights(car), *(_bed(car) if car.has_bed else ())]
    boxes = [(_frustum_faces(frustum), colour) for frustum, colour in parts]
    return _solids(boxes, car.height / 2), _solids(_wheels(car), car.height / 2)


def _body(car: Car) -> Iterator[tuple[Frustum, Colour]]:
    end, side, sill = car.length / 2 - PROUD, car.width / 2 - 0.02, 0.6 * car.wheel_radius
    foot = (-end + 0.03, end - 0.03, side - 0.03, sill)
    waist = (-end, end, side, sill + 0.6 * (car.belt - sill))
    bonnet = (-end + 0.03, end - car.nose, side - 0.03, car.belt)
    yield _frustum(foot, waist), car.paint
    yield _frustum(waist, bonnet), car.paint
    bumper = (-car.length / 2, car.length / 2, side - 0.01)
    yield _frustum((*bumper, sill + 0.02), (*bumper, sill + 0.27 * (car.belt - sill))), TRIM


def _cabin(car: Car) -> Iterator[tuple[Frustum, Colour]]:
    foot, roof = (*car.cabin, car.width / 2 - 0.055, car.belt), (*car.roof, car.width / 2 - 0.11, car.height)
    cabin = _frustum(foot, roof)
    yield cabin, car.roof_paint
    glass = np.array([[0.86, 0.14], [0.16, 0.84]]) @ cabin
    # One block of glass through the cabin for the windscreen and the rear window, one for each pair of side windows.
    yield glass + np.array([-PROUD, PROUD, PILLAR, -PILLAR, 0]), GLASS
    front, rear = glass + np.array([0, -PILLAR, -PROUD, PROUD, 0]), glass + np.array([PILLAR, 0, -PROUD, PROUD, 0])
    middle = car.roof[0] if car.has_bed else sum(car.roof) / 2
    front[:, 0], rear[:, 1] = middle + PILLAR / 2, middle - PILLAR / 2
    yield front, GLASS
    if car.has_rear_windows:
        yield rear, GLASS


def _lights(car: Car) -> Iterator[tuple[Frustum, Colour]]:
    end, side, low, high = car.length / 2, car.width / 2, 0.6 * car.belt, 0.8 * car.belt
    for y0, y1 in ((-side + 0.04, -side + 0.16), (side - 0.16, side - 0.04)):
        yield np.array([(0, end, y0, y1, low), (0, end - 0.01, y0, y1, high)]), HEADLIGHT
        yield np.array([(-end, 0, y0, y1, low), (-end, 0, y0, y1, high)]), TAILLIGHT
    yield _frustum((0, end - 0.002, side - 0.19, low), (0, end - 0.012, side - 0.19, high - 0.02)), TRIM
    yield _frustum((-end, 0, 0.07, low - 0.01), (-end, 0, 0.07, low + 0.045)), PLATE


def _bed(car: Car) -> Iterator[tuple[Frustum, Colour]]:
    rear, front, side = 0.04 - car.length / 2, car.cabin[0], car.width / 2 - 0.05
    low, high = car.belt - 0.01, car.belt + 0.06
    yield _frustum((rear, front, side - 0.01, low), (rear, front, side - 0.01, car.belt + 0.005)), TRIM
    for x1, y0, y1 in ((rear + 0.03, -side, side), (front, -side, -side + 0.03), (front, side - 0.03, side)):
        yield np.array([(rear, x1, y0, y1, low), (rear, x1, y0, y1, high)]), car.paint


def _wheels(car: Car) -> Iterator[tuple[Float[np.ndarray, "18 4"], Colour]]:
    inner, outer = car.width / 2 - 0.13, car.width / 2
    for x in car.wheels:
        for y0, y1 in ((-outer, -inner), (inner, outer)):
            yield _wheel_faces(x, car.wheel_radius, car.wheel_radius, y0 + PROUD, y1 - PROUD), TYRE
            yield _wheel_faces(x, car.wheel_radius, 0.58 * car.wheel_radius, y0, y1), HUB


def _frustum(bottom: tuple[float, ...], top: tuple[float, ...]) -> Frustum:
    """Returns the frustum between rectangles (x0, x1, half width, z) that straddle the car's middle."""
    return np.array([(x0, x1, -half_width, half_width, z) for x0, x1, half_width, z in (bottom, top)])


def _frustum_faces(frustum: Frustum) -> Float[np.ndarray, "6 4"]:
    bottom, top = frustum
    x0, x1, y0, y1, rise = top - bottom
    normals = np.array([(-rise, 0, x0), (rise, 0, -x1), (0, -rise, y0), (0, rise, -y1), (0, 0, -1), (0, 0, 1)])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    low, high = bottom[[0, 2, 4]], bottom[[1, 3, 4]]
    offsets = (normals * (low, high, low, high, low, top[[0, 2, 4]])).sum(-1)
    return np.concatenate([normals, offsets[:, None]], axis=-1)


def _wheel_faces(x: float, z: float, radius: float, y0: float, y1: float) -> Float[np.ndarray, "18 4"]:
    """Returns a cylinder about an axis along y, with sixteen flats."""
    angles = np.arange(16) * np.pi / 8
    rim = [(c, 0, s, c * x + s * z + radius) for c, s in zip(np.cos(angles), np.sin(angles), strict=True)]
    return np.array([*rim, (0, -1, 0, -y0), (0, 1, 0, y1)])


def _solids(parts: Iterable[tuple[Float[np.ndarray, "faces 4"], Colour]], ground: float) -> Solids:
    """Returns the parts as solids, lowered by the depth of the ground below the origin."""
    faces, colours = (np.array(column) for column in zip(*parts, strict=True))
    return Solids(faces[..., :3], faces[..., 3] - ground * faces[..., 2], colours)


# ---- solids as pixels ------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="size")
def render_view(groups: tuple[Solids, ...], pose: Float[Array, "4 4"], *, size: int) -> UInt8[Array, "size size 4"]:
    """Returns a square RGBA view with straight, antialiased alpha; where nothing is, all four are 0."""
    side = size * SUPERSAMPLING
    row, column = jnp.divmod(jnp.arange(side**2), side)
    focal = jnp.asarray(side / 2 / np.tan(CAMERA_ANGLE_X / 2))
    rays = pixel_rays(row, column, jnp.broadcast_to(pose, (side**2, 4, 4)), focal, height=side, width=side)
    nearest = Surface(jnp.full(side**2, jnp.inf), jnp.zeros((3, side**2)))
    for solids in groups:
        nearest, _ = jax.lax.scan(partial(_nearer, pose[:3, 3], rays.directions.T), nearest, solids)
    samples = jnp.concatenate([nearest.rgb, jnp.isfinite(nearest.distance)[None]])
    *rgb, alpha = samples.reshape(4, size, SUPERSAMPLING, size, SUPERSAMPLING).mean((2, 4))
    straight = jnp.stack([*(channel / jnp.maximum(alpha, 1e-6) for channel in rgb), alpha], axis=-1)
    return jnp.round(255 * straight).astype(jnp.uint8)


def _nearer(
    origin: Float[Array, "3"], directions: Float[Array, "3 rays"], nearest: Surface, solid: Solids
) -> tuple[Surface, None]:
    """Returns what the rays meet first once a solid has been added."""
    gaps = solid.offsets - (solid.normals * origin).sum(-1)
    shades = AMBIENT + 0.10 * solid.normals[:, 2] + (1 - AMBIENT) * jnp.maximum(0, (solid.normals * SUN).sum(-1))

    def clip(interval: tuple[Array, Array, Array], face: tuple[Any, ...]) -> tuple[Any, None]:
        (enter, leave, shade), (normal, gap, face_shade) = interval, face
        # Not a matmul, which a GPU would round to TF32.
        slope = normal[0] * directions[0] + normal[1] * directions[1] + normal[2] * directions[2]
        distance = gap / jnp.where(slope == 0, 1e-12, slope)
        shade = jnp.where((slope < 0) & (distance > enter), face_shade, shade)
        enter = jnp.where(slope < 0, jnp.maximum(enter, distance), enter)
        leave = jnp.where(slope > 0, jnp.minimum(leave, distance), leave)
        return (enter, leave, shade), None

    zero = jnp.zeros_like(nearest.distance)
    (enter, leave, shade), _ = jax.lax.scan(clip, (zero, zero + jnp.inf, zero), (solid.normals, gaps, shades))
    hit = (enter < leave) & (enter < nearest.distance)
    rgb = jnp.minimum(1, shade * solid.colours[:, None])
    return Surface(jnp.where(hit, enter, nearest.distance), jnp.where(hit, rgb, nearest.rgb)), None


# ---- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Makes a class of parametric toy cars, `toycar`, for trying out training without any download."""

    out: Path = Path("data/toy")
    """Folder for `toycar_splits.json` and `toycar/<scene>/`; other classes in it are left alone."""
    num_scenes: int = 64
    """Cars; at least 3, one for each split."""
    num_views: int = 25
    """Views of each car."""
    size: int = 64
    """Pixels a side."""
    seed: int = 0
    """The same seed gives the same cars; more scenes or views only add to them."""


def sample_scene(seed: int, index: int, *, num_views: int) -> tuple[Car, Float[np.ndarray, "views 4 4"]]:
    """Returns a scene's car and cameras, which depend on the seed and the scene's number only."""
    rng = np.random.default_rng((seed, index))
    car = sample_car(rng)
    # Uniform over the upper hemisphere's area, as the authors' views are.
    low, high = (0, np.sin(ELEVATIONS[0])), (2 * np.pi, np.sin(ELEVATIONS[1]))
    angles = [(azimuth, np.arcsin(z)) for azimuth, z in rng.uniform(low, high, (num_views, 2))]
    return car, np.stack([orbit_pose(azimuth, elevation, CAMERA_RADIUS) for azimuth, elevation in angles])


def make_scene(config: Config, index: int) -> None:
    """Renders and writes one scene."""
    car, poses = sample_scene(config.seed, index, num_views=config.num_views)
    groups = car_solids(car)
    images = np.stack([render_view(groups, pose, size=config.size) for pose in poses])
    write_scene(config.out / CLASS_NAME / scene_id(index), images, poses, CAMERA_ANGLE_X)


def scene_id(index: int) -> str:
    """Returns the name of a scene's folder."""
    return f"{CLASS_NAME}_{index:04d}"


def check(config: Config) -> None:
    """Raises InputError for flags that make no class of scenes, or would overwrite or mix with something else."""
    for flag, value, low, high in (
        ("--num-scenes", config.num_scenes, 3, 100_000),
        ("--num-views", config.num_views, 1, 10_000),
        ("--size", config.size, 1, MAX_SIZE),
        ("--seed", config.seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise InputError(f"{flag} is {value}, wanted {low} to {high}")
    folder = config.out / CLASS_NAME
    names = {"transforms.json", *(f"r_{view}.png" for view in range(config.num_views))}
    ids = {scene_id(index) for index in range(config.num_scenes)}
    for path in sorted(folder.rglob("*")):
        scene, *rest = path.relative_to(folder).parts
        if scene not in ids or not names.issuperset(rest):
            raise InputError(f"--out holds {path}, which these flags would not write; remove {folder} or change --out")


def main(args: list[str] | None = None) -> None:
    """Runs the command with the given flags, or with the process's."""
    config = tyro.cli(Config, args=args)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    try:
        check(config)
        with ThreadPoolExecutor() as pool:
            list(
                tqdm(
                    pool.map(partial(make_scene, config), range(config.num_scenes)),
                    "drawing",
                    config.num_scenes,
                    unit="scene",
                    disable=None,
                )
            )
        for index in range(config.num_scenes):
            splits[SPLIT_CYCLE[index % len(SPLIT_CYCLE)]].append(scene_id(index))
        write_splits(config.out, CLASS_NAME, splits)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(InputError.exit_code)


if __name__ == "__main__":
    # On the CPU even where there is a GPU: it starts sooner, and the bytes do not depend on the accelerator.
    jax.config.update("jax_platforms", "cpu")
    main()

"""Slices of a CT scanner: a coordinate network that holds the density of a slice, fitted to projections of it.

The views of a slice are its projections: number k of n is in the direction k / n of a half turn. What is scored is the
slice itself, whatever the number.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxmeta import signals
from jaxmeta.data.folders import check_size
from jaxmeta.data.slices import load_slices
from jaxmeta.devices import resolve_dtype
from jaxmeta.errors import InputError
from jaxmeta.fields import FourierMLP
from jaxmeta.metalearning import Params
from jaxmeta.objectives import cross_entropy, projection_loss
from jaxmeta.samples import Samples, grid_points, values_at
from jaxmeta.signals import Evaluated, Kind, Protocol, Signal, Split
from jaxmeta.tomography import Scan, even_angles, project
from jaxmeta.words import counted

_NUM_POINTS = 1024


class Scene(NamedTuple):
    """A slice and its scan; the leading axes are the same in all."""

    scan: Scan
    density: Float[Any, "*scenes size size"]
    """For scoring; a fit does not see it."""


@dataclasses.dataclass(frozen=True)
class DataConfig(signals.DataConfig):
    """Which slices to learn from."""

    root: Path | None = None
    """A folder of slices, as pictures or npy; None draws Shepp-Logan phantoms."""
    size: int = 256
    """Pixels along a side."""
    num_views: int = 128
    """Directions in which each slice is projected, evenly over a half turn."""


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """The network: relus behind random Fourier features."""

    width: int = 256
    """Features of each hidden layer."""
    depth: int = 4
    """Hidden layers."""
    num_frequencies: int = 256
    """Random frequencies."""
    frequency_scale: float = 30.0
    """Their standard deviation, in radians per side of the slice."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matmuls' operands; auto is bfloat16 on a GPU and a TPU, else float32."""


@dataclasses.dataclass(frozen=True)
class CTConfig(Kind):
    """Slices, and the network that holds one."""

    kind: ClassVar[str] = "ct"
    units: ClassVar[tuple[str, str]] = ("projection", "slice")
    drawn: ClassVar[str] = "projection"
    data: DataConfig = DataConfig()
    field: FieldConfig = FieldConfig()

    def check(self, *, num_rays: int | None, support: Sequence[int], query: Sequence[int]) -> None:
        """Refuses directions that there are not, and slices that are too small.

        Raises:
          InputError: names the flag.
        """
        check_size(self.data.size)
        if num_rays is not None and num_rays > self.data.num_views:
            raise InputError(f"--inner.num-rays {num_rays} must be at most --data.num-views {self.data.num_views}")
        if not all(0 <= view < self.data.num_views for view in support):
            raise InputError(
                f"--validation.support {tuple(support)} must be projections from 0 to {self.data.num_views - 1}: "
                "--data.num-views are made"
            )

    @property
    def protocol(self) -> Protocol:
        """How slices are evaluated where the flags do not say: from four projections."""
        support = tuple(self.data.num_views * i // 4 for i in range(min(4, self.data.num_views)))
        stages = (0, 50, 100, 1000)
        return Protocol(((1, (0,)),), support, stages, optimiser=None, held_out=False, even=True)

    def training_views(self) -> list[int]:
        """Returns the projections that training is on."""
        return list(range(self.data.num_views))

    def with_one_view(self) -> "CTConfig":
        """Returns the config of a training from one projection of each slice."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, num_views=1))

    def count_views(self, name: str, *, num_scenes: int | None = None) -> int:
        """Returns how many projections a slice has."""
        return self.data.num_views

    def load(self, name: str, *, num_scenes: int | None = None, num_views: int | None = None) -> Split:
        """Returns the first slices of a split, with their projections."""
        data = self.data
        ids, density, content = load_slices(data.root, name, size=data.size, num_slices=num_scenes)
        angles = even_angles(data.num_views)
        project_one = jax.jit(partial(project, angles=jnp.asarray(angles)))
        bar = tqdm(density, desc="projecting", unit="slice", disable=None, leave=False)  # On a CPU it takes minutes.
        scan = Scan(np.stack([project_one(one) for one in bar]), np.broadcast_to(angles, (len(ids), len(angles))))
        return Split(ids, Scene(scan, density), density.shape[1:], content)

    def notes(self, support: Sequence[int], query: int) -> tuple[str, str]:
        """Returns the number of projections; the query is the slice."""
        return counted(len(support), "projection"), ""

    def explanation(self, support: Sequence[int]) -> str:
        """Returns what a sinogram is."""
        return (
            "The support is a sinogram: a band for each projection, and so for each direction in which rays pass "
            "through the slice. Along a band, it is the brighter the more a ray meets. Of the slice itself the "
            "network is given nothing."
        )

    def draw(self, out: Path, done: Evaluated, *, num_scenes: int) -> list[Any]:
        """Draws slices.png where there are several numbers of projections: what comes out of each."""
        from jaxmeta.kinds import slices_by_views  # brings Matplotlib, which a training need not wait for

        if len(done.supports) < 2:
            return []
        return [slices_by_views.draw_slices(out / "slices.png", done, num_scenes=num_scenes)]

    def assemble(self, *, size: tuple[int, int], num_rays: int | None, twice: bool = False) -> Signal:
        """Returns the functions of this kind of signal."""
        field = self.field
        network = FourierMLP(
            width=field.width,
            depth=field.depth,
            num_frequencies=field.num_frequencies,
            frequency_scale=field.frequency_scale,
            compute_dtype=resolve_dtype(field.compute_dtype),
        )

        def loss(params: Params, scene: Scene, key: Array) -> Float[Array, ""]:
            few = num_rays is not None and num_rays < len(scene.scan.angles)
            return projection_loss(network.apply, params, scene.scan, key, num_directions=num_rays if few else None)

        def predict(params: Params, density: Array, *, rays_per_chunk: int = 2**16) -> Float[Array, "size size 3"]:
            points = jnp.asarray(grid_points(*density.shape))
            values = values_at(network.apply, params, Samples(points, points), rays_per_chunk=rays_per_chunk)
            return grey(values[..., 0])

        def output(params: Params, scene: Scene, key: Array) -> Float[Array, "points 1"]:
            return jnp.asarray(network.apply(params, jax.random.uniform(key, (_NUM_POINTS, 2))))

        return Signal(
            init=lambda key: network.init(key, jnp.zeros((1, 2))),
            loss=loss,
            predict=predict,
            target=grey,
            support=some_projections,
            output=output,
            mismatch=cross_entropy,
            query=lambda scenes, chosen, numbers: scenes.density[chosen][:, None],
            given=lambda scene: sinogram(scene.scan.projections),
        )


def sinogram(projections: Float[Any, "directions size"]) -> Float[np.ndarray, "size size 3"]:
    """Returns projections as a picture: below each other a band for each, parted by white lines; the largest is white.

    Of more projections than there are rows some are left out.
    """
    projections = np.asarray(projections)
    count, size = projections.shape
    rows = np.arange(size) * count // size
    image = projections[rows] / max(projections.max(), np.finfo(np.float32).tiny)
    if 4 * count <= size:
        image[1:][rows[1:] != rows[:-1]] = 1
    return np.asarray(grey(image))


def grey(density: Float[Any, "size size"]) -> Float[Array, "size size 3"]:
    """Returns a slice as a picture: three channels alike."""
    return jnp.repeat(jnp.asarray(density)[..., None], 3, axis=-1)


def some_projections(scenes: Scene, chosen: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]) -> Scene:
    """Returns the projections `numbers[i]` of slice `chosen[i]`, for each i, and nothing of the slice."""
    places = (chosen[:, None], numbers)
    scan = Scan(scenes.scan.projections[places], scenes.scan.angles[places])
    return Scene(scan, np.full((len(chosen), 1, 1), np.nan, np.float32))

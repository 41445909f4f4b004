"""Pictures: a coordinate network, fitted to the colours of pixels.

The views of a picture are its parts, by number: 0 all of it, 1 its left half, 2 its right half, 3 a tenth of its pixels
at random, 4 the other nine tenths. So `--support 1 --query 2` fits the left half and scores the right one.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from optax.losses import squared_error

from jaxmeta import signals
from jaxmeta.data.folders import check_size
from jaxmeta.data.images import load_images
from jaxmeta.devices import resolve_dtype
from jaxmeta.errors import InputError
from jaxmeta.fields import FourierMLP, Siren
from jaxmeta.objectives import cross_entropy, regression_loss
from jaxmeta.samples import Samples, grid_points, unit_values, values_at, values_somewhere
from jaxmeta.signals import Kind, Protocol, Signal, Split
from jaxmeta.words import counted

PARTS = ("whole", "left half", "right half", "random tenth", "other nine tenths")
_SHARE = 0.1
_OVERLAPS = frozenset(itertools.combinations(range(len(PARTS)), 2)) - {(1, 2), (3, 4)}
"""Parts that share pixels: all but the halves with each other, and the tenth with the rest."""


@dataclasses.dataclass(frozen=True)
class DataConfig(signals.DataConfig):
    """Which pictures to learn from."""

    root: Path | None = None
    """A folder of pictures or of MNIST's files, or an npz of the paper's authors; None draws faces."""
    size: int = 178
    """Pixels along a side: pictures are cut to the square in their middle, and resized."""


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """The network."""

    network: Literal["siren", "fourier"] = "siren"
    """siren has sines between its layers; fourier has relus, behind random Fourier features."""
    width: int = 256
    """Features of each hidden layer."""
    depth: int = 4
    """Hidden layers."""
    w0: float = 200.0
    """Of siren: radians per unit of a layer's sum; the higher, the finer the detail."""
    num_frequencies: int = 256
    """Of fourier: random frequencies."""
    frequency_scale: float = 30.0
    """Of fourier: the frequencies' standard deviation, in radians per side of the picture."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the matmuls' operands; bfloat16 costs a sine network some hundredths of a dB in each fit."""


@dataclasses.dataclass(frozen=True)
class ImagesConfig(Kind):
    """Pictures, and the network that holds one."""

    kind: ClassVar[str] = "images"
    drawn: ClassVar[str] = "pixel"
    names: ClassVar[tuple[str, ...]] = PARTS
    data: DataConfig = DataConfig()
    field: FieldConfig = FieldConfig()

    @property
    def protocol(self) -> Protocol:
        """How pictures are evaluated where the flags do not say."""
        return super().protocol._replace(overlaps=_OVERLAPS)

    def check(self, *, num_rays: int | None, support: Sequence[int], query: Sequence[int]) -> None:
        """Refuses parts that a picture does not have, and pictures that are too small."""
        check_size(self.data.size)
        check_parts(support, query)

    def count_views(self, name: str, *, num_scenes: int | None = None) -> int:
        """Returns how many parts a picture has."""
        return len(PARTS)

    def load(self, name: str, *, num_scenes: int | None = None, num_views: int | None = None) -> Split:
        """Returns the first pictures of a split, with all their parts."""
        ids, images, content = load_images(self.data.root, name, size=self.data.size, num_images=num_scenes)
        points = grid_points(*images.shape[1:3])
        # Every picture has the same points, which take memory on a device alone.
        samples = Samples(np.broadcast_to(points, (len(images), *points.shape)), images)
        return Split(ids, samples, images.shape[1:3], content)

    def pictured(self, numbers: Int[np.ndarray, "*tasks"]) -> Int[np.ndarray, "*tasks"]:
        """Returns the number of all of the picture, whatever part of it was scored."""
        return np.zeros_like(numbers)

    def notes(self, support: Sequence[int], query: int) -> tuple[str, str]:
        """Returns the names of the parts; none where all of the picture is fitted and scored."""
        if query == 0 and tuple(support) == (0,):
            return "", ""
        return PARTS[support[0]] if len(support) == 1 else counted(len(support), "part"), PARTS[query]

    def explanation(self, support: Sequence[int]) -> str:
        """Returns how to see which part was given, where it was not all."""
        if 0 in support:
            return ""
        return (
            "The grey pixels of the support were not given; what the network makes of them comes from what was learned "
            "about the class. The PSNR is of the part that is named below the target."
        )

    def assemble(self, *, size: tuple[int, int], num_rays: int | None, twice: bool = False) -> Signal:
        """Returns the functions of this kind of signal."""
        network = make_network(self.field)
        return Signal(
            init=lambda key: network.init(key, jnp.zeros((1, 2))),
            loss=partial(regression_loss, network.apply, num_points=num_rays),
            predict=partial(values_at, network.apply),
            target=unit_values,
            support=some_parts,
            query=each_part,
            output=partial(values_somewhere, network.apply),
            mismatch=squared_error if isinstance(network, Siren) else cross_entropy,
            given=partial(in_place, size),
        )


def make_network(field: FieldConfig) -> Siren | FourierMLP:
    """Returns the network that a config describes."""
    float32 = resolve_dtype(field.compute_dtype) == jnp.float32
    shared: dict[str, Any] = {
        "features": 3,
        "width": field.width,
        "depth": field.depth,
        "compute_dtype": None if float32 else jnp.bfloat16,
    }
    if field.network == "siren":
        return Siren(w0=field.w0, **shared)
    return FourierMLP(num_frequencies=field.num_frequencies, frequency_scale=field.frequency_scale, **shared)


def check_parts(support: Sequence[int], query: Sequence[int]) -> None:
    """Refuses parts that a picture does not have, and parts that cannot be scored together.

    Raises:
      InputError: names the numbers.
    """
    if not all(0 <= part < len(PARTS) for part in (*support, *query)):
        known = ", ".join(f"{number} {name}" for number, name in enumerate(PARTS))
        raise InputError(f"support {tuple(support)} and query {tuple(query)} must be parts of a picture: {known}")
    if len(set(query)) > 1 and set(query) != {1, 2}:
        raise InputError(f"query {tuple(query)} has parts of different sizes; score one after the other")


def some_parts(samples: Samples, scenes: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]) -> Samples:
    """Returns the pixels of the parts `numbers[i]` of picture `scenes[i]`, for each i, in a row."""
    return _stacked(
        [_joined([part_of(samples, *place) for place in _places(*task)]) for task in zip(scenes, numbers, strict=True)]
    )


def each_part(samples: Samples, scenes: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]) -> Samples:
    """Returns the parts `numbers[i]` of picture `scenes[i]`, for each i, one by one; random pixels as a column."""
    check_parts((), numbers[0].tolist())
    return _stacked(
        [_stacked([part_of(samples, *place) for place in _places(*task)]) for task in zip(scenes, numbers, strict=True)]
    )


def part_of(samples: Samples, scene: int, number: int) -> Samples:
    """Returns a part of a picture; which pixels are in the random one depends on the number of the scene alone."""
    points, values = (leaf[scene] for leaf in samples)
    middle = points.shape[1] // 2
    if number < 3:
        columns = (slice(None), slice(None, middle), slice(middle, None))[number]
        return Samples(points[:, columns], values[:, columns])
    order = np.random.default_rng(scene).permutation(points.shape[0] * points.shape[1])
    few = max(int(_SHARE * len(order)), 1)
    chosen = order[:few] if number == 3 else order[few:]
    return Samples(points.reshape(-1, 2)[chosen, None], values.reshape(-1, values.shape[-1])[chosen, None])


def in_place(size: tuple[int, int], samples: Samples) -> Float[np.ndarray, "height width 3"]:
    """Returns the picture of this height and width of which there are samples, grey where there is none."""
    image = np.full((*size, 3), 0.5, np.float32)
    rows, columns = np.rint(np.asarray(samples.points).reshape(-1, 2) * size).astype(int).T
    image[rows, columns] = np.asarray(unit_values(samples)).reshape(-1, 3)
    return image


def _places(scene: Any, numbers: Any) -> list[tuple[int, int]]:
    return [(int(scene), int(number)) for number in numbers]


def _joined(parts: list[Samples]) -> Samples:
    return Samples(
        *(np.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]) for leaves in zip(*parts, strict=True))
    )


def _stacked(parts: list[Samples]) -> Samples:
    return Samples(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))

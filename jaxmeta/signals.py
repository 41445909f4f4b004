"""The seam between the kinds of signal and what learns and evaluates them.

Training and evaluation know a `Split` of scenes and a `Signal`, and nothing of views, pictures or scans.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree
from optax.losses import squared_error

from jaxmeta.errors import InputError
from jaxmeta.feeding import Residency
from jaxmeta.metalearning import LossFn, Params
from jaxmeta.rendering import Rendering


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which scenes to learn from."""

    root: Path | None = None
    """Where the data lie; None for a class that is made up."""
    num_scenes: int | None = None
    """Train on the first so many scenes of the split; None for all."""
    residency: Residency = "auto"
    """Where the scenes are kept: on the device, or on the host, from where those of the next steps are sent ahead. auto
    takes the device if that leaves half of its memory."""


Optimiser = Literal["sgd", "adam"]


class Protocol(NamedTuple):
    """Settings of an evaluation that have a name."""

    queries: tuple[tuple[int, tuple[int, ...]], ...] = ((23, (1, 4, 7, 10, 13, 16, 19, 22)),)
    """How many views the data must have for which query views; the first that is possible counts."""
    support: tuple[int, ...] = (0,)
    stages: tuple[int, ...] = (0, 1, 10, 32, 100, 1000)
    num_rays: int | None = None
    optimiser: Optimiser | None = "sgd"
    """None for that of the training."""
    step_size: float | None = None
    draws: int = 0
    held_out: bool = True
    """Whether a view that is scored must not be fitted."""
    overlaps: frozenset[tuple[int, int]] = frozenset()
    """Pairs of different views, the smaller number first, that share what they show."""
    even: bool = False
    """Whether several views are spread evenly over all that there are, not taken in order."""

    def check_apart(self, support: Sequence[int], query: Sequence[int], *, flags: str = "--") -> None:
        """Refuses a query that the support gives away.

        Args:
          support: the views that are fitted.
          query: the views that are scored.
          flags: what the names of the two flags begin with.

        Raises:
          InputError: names the flag.
        """
        both = sorted(set(support) & set(query)) if self.held_out else []
        if both:
            raise InputError(f"{flags}query {tuple(query)} holds the support views {both}; they are not held out")
        for given, scored in itertools.product(support, query):
            if (min(given, scored), max(given, scored)) in self.overlaps:
                raise InputError(
                    f"{flags}query {scored} shares pixels with {flags}support {given}; score what shares none, or "
                    f"{given} itself"
                )


class Split(NamedTuple):
    """The scenes of one split, on the host."""

    ids: tuple[str, ...]
    scenes: PyTree[Any]
    """Arrays with a leading axis of scenes: what `Signal.loss` takes of one scene, and more if need be."""
    size: tuple[int, int]
    """Height and width of what is seen of a scene, in pixels."""
    content: str
    """A hash that tells other data apart."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a run's config says of its kind of signal: network, data, and how they become a `Signal`.

    A kind has `data`, `load` and `assemble`; the rest is as here where a scene is seen as a whole or not at all.
    """

    kind: ClassVar[str]
    """The name in config.json."""
    units: ClassVar[tuple[str, str]] = ("part", "part")
    """What the views of a support, and of a query, are called."""
    drawn: ClassVar[str] = "ray"
    """What an inner step draws from the support."""
    names: ClassVar[tuple[str, ...]] = ()
    """Of the views, by number, where they have names."""

    @property
    def protocol(self) -> Protocol:
        """How scenes are evaluated where the flags do not say."""
        return Protocol(queries=((1, (0,)),), stages=(0, 1, 2, 5), optimiser=None, held_out=False)

    def check(self, *, num_rays: int | None, support: Sequence[int], query: Sequence[int]) -> None:
        """Refuses values that cannot be meant; the views are those of the validation.

        Raises:
          InputError: names the flag.
        """

    def count_views(self, name: str, *, num_scenes: int | None = None) -> int:
        """Returns how many views every one of the first scenes of a split has."""
        return 1

    def training_views(self) -> list[int]:
        """Returns the views that training is on."""
        return [0]

    def with_one_view(self) -> Any:
        """Returns the config of a training from one view of each scene."""
        raise InputError(f"--baselines single-view is for scenes of many views; a run of {self.kind} has none")

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest distance that a picture of distances shows, in scene units."""
        return 0.0, 1.0

    def pictured(self, numbers: Int[np.ndarray, "*tasks"]) -> Int[np.ndarray, "*tasks"]:
        """Returns the views that figures show in place of those that were scored, such as the whole of a scene."""
        return numbers

    def notes(self, support: Sequence[int], query: int) -> tuple[str, str]:
        """Returns what stands below a picture of such a support, and below one of such a query view."""
        return "", ""

    def explanation(self, support: Sequence[int]) -> str:
        """Returns what a reader must know to understand pictures of such a support, in sentences."""
        return ""

    def draw(self, out: Path, done: "Evaluated", *, num_scenes: int) -> list[Any]:
        """Draws pictures of an evaluation that other kinds do not have, of so many scenes; returns each `Picture`."""
        return []


class Evaluated(NamedTuple):
    """What there is to draw pictures of after an evaluation."""

    signal: Any
    """The `Signal`."""
    split: Split
    supports: Sequence[tuple[int, ...]]
    """The views that were fitted, for each number of views evaluated."""
    stages: tuple[int, ...]
    optimiser: optax.GradientTransformation
    """Of the inner loop."""
    initialisations: Mapping[str, Any]
    """By name, of the first seed."""
    seed: int
    mesh: Mesh


class Signal(NamedTuple):
    """A kind of signal: its network, what judges it, how it is seen; all that training and evaluation know of it.

    What a network is fitted to, its support, and an item that it is scored on, of its query, are any pytrees of arrays.
    """

    init: Callable[[Array], Params]
    """Draws the standard initialisation from a key."""
    loss: LossFn
    """`(params, support, key)`, of one scene."""
    predict: Callable[..., Float[Array, "height width channels"]]
    """`(params, query_item, *, rays_per_chunk) -> image`: what a fitted network shows for an item, in [0, 1]."""
    target: Callable[[Any], Float[Array, "height width channels"]]
    """`query_item -> image`: what it should show."""
    support: Callable[[Any, Int[np.ndarray, "tasks"], Int[np.ndarray, "tasks views"]], Any]
    """`(data, scenes, numbers) -> support` on the host: of scene `scenes[i]` the views `numbers[i]`, along the leading
    axis i. What a kind of signal counts as a view is its own; one that has a single view gets zeros."""
    query: Callable[[Any, Int[np.ndarray, "tasks"], Int[np.ndarray, "tasks views"]], Any]
    """As `support`, but query items along the second axis of every array."""
    output: Callable[[Params, Any, Array], Float[Array, "*points outputs"]]
    """`(params, support, key)`: what the network itself gives at random points of a support's domain, of order one."""
    mismatch: Callable[[Array, Array], Array] = squared_error
    """`(outputs, wanted)`: how far each output is from that of another network."""
    given: Callable[[Any], Float[Any, "height width channels"]] | None = None
    """`support -> image`: what a network was fitted to, as large as what it shows; None where a query item of the first
    view tells it."""
    render_pose: Callable[..., Rendering] | None = None
    """Of scenes: `(params, pose, focal, rays_per_chunk=4096) -> Rendering` of a whole view, for pictures."""

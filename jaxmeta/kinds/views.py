"""Scenes seen from posed cameras: a radiance field, fitted to pixels of views."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmeta import blocked, fused, signals
from jaxmeta.cameras import View, Views
from jaxmeta.data.splits import Layout, count_views, load_split
from jaxmeta.devices import resolve_dtype
from jaxmeta.errors import InputError
from jaxmeta.fields import DensityActivation, RadianceField
from jaxmeta.metalearning import Params
from jaxmeta.objectives import composite_on_white, cross_entropy, field_samples, photometric_loss
from jaxmeta.rendering import Rendering, Sampling, render_view
from jaxmeta.signals import Kind, Protocol, Signal, Split


@dataclasses.dataclass(frozen=True)
class DataConfig(signals.DataConfig):
    """Which scenes to learn from."""

    root: Path = Path("data")
    """Folder that holds <class>_splits.json and the folder of that class's scenes."""
    class_name: str = "car"
    """The class of scenes: reads <class>_splits.json and the folder <class> or <class>s."""
    num_views: int = 25
    """Views loaded of each scene: the first ones that it lists."""
    layout: Layout = "auto"
    """How the files are laid out; auto looks what is there."""
    assume_opaque: bool = False
    """Take RGB images, which have no alpha, as opaque."""
    verify: bool = False
    """Compare the checksums of the packed scenes at the start, not only their sizes."""
    on_bad_scene: Literal["error", "skip"] = "error"
    """What becomes of a broken scene of the train split: skip leaves it out with a warning, up to one in a hundred."""
    allow_overlap: bool = False
    """Let a scene be in several splits."""


@dataclasses.dataclass(frozen=True)
class FieldConfig:
    """The network."""

    width: int = 256
    """Features of each hidden layer."""
    depth: int = 5
    """Hidden layers."""
    num_frequencies: int = 20
    """Frequencies of the positional encoding."""
    max_log2_frequency: float = 8.0
    """Base-2 logarithm of the highest frequency."""
    density_activation: DensityActivation = "shifted_softplus"
    """relu is the paper's; its field can become transparent everywhere and stay so. That of shifted_softplus cannot."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matmuls' operands; auto is bfloat16 on a GPU, a TPU and, from a width of 128 on and not with xla, a CPU
    with AMX or AVX512-BF16; else float32."""
    implementation: Literal["auto", "xla", "fused"] = "auto"
    """xla runs everywhere; fused is kernels for Hopper GPUs and a width of 256; auto is fused where that can be, and on
    a CPU xla in an order that suits its caches and its matmuls."""


@dataclasses.dataclass(frozen=True)
class ViewsConfig(Kind):
    """Scenes, and the network that holds one."""

    kind: ClassVar[str] = "views"
    units: ClassVar[tuple[str, str]] = ("view", "view")
    data: DataConfig = DataConfig()
    field: FieldConfig = FieldConfig()
    sampling: Sampling = Sampling()
    pixel_centre: float = 0.5
    """Where in its pixel a ray passes: 0.5 is the middle, 0 the upper left corner."""

    def check(self, *, num_rays: int | None, support: Sequence[int], query: Sequence[int]) -> None:
        """Refuses values that cannot be meant; the views are those of the validation.

        Raises:
          InputError: names the flag.
        """
        sampling, views = self.sampling, self.data.num_views
        if num_rays is None:
            raise InputError("--inner.num-rays None means all, which are too many of views; give a number")
        if not sampling.near < sampling.far:
            raise InputError(f"--sampling.far {sampling.far} must exceed --sampling.near {sampling.near}")
        if sampling.num_samples < 2:
            raise InputError(f"--sampling.num-samples {sampling.num_samples} must be at least 2")
        for flag, numbers in (("support", support), ("query", query)):
            if not all(view < views for view in numbers):
                raise InputError(
                    f"--validation.{flag} {tuple(numbers)} must be views from 0 to {views - 1}: "
                    "--data.num-views are loaded"
                )

    @property
    def protocol(self) -> Protocol:
        """How scenes are evaluated where the flags do not say."""
        return Protocol(optimiser=None)

    @property
    def span(self) -> tuple[float, float]:
        """The distances that are sampled."""
        return self.sampling.near, self.sampling.far

    def training_views(self) -> list[int]:
        """Returns the views that training is on."""
        return list(range(self.data.num_views))

    def notes(self, support: Sequence[int], query: int) -> tuple[str, str]:
        """Returns the numbers of the first view of a support and of a query view, as the data set has them."""
        several = f" (1 of {len(support)})" if len(support) > 1 else ""
        return f"view {support[0]}{several}", f"view {query}"

    def with_one_view(self) -> "ViewsConfig":
        """Returns the config of a training from one view of each scene."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, num_views=1))

    def count_views(self, name: str, *, num_scenes: int | None = None) -> int:
        """Returns how many views every one of the first scenes of a split has."""
        data = self.data
        return count_views(
            data.root,
            data.class_name,
            name,
            num_scenes=num_scenes,
            layout=data.layout,
            allow_overlap=data.allow_overlap,
        )

    def load(self, name: str, *, num_scenes: int | None = None, num_views: int | None = None) -> Split:
        """Returns the first scenes of a split, with so many views of each, or those of the config if not given."""
        data = self.data
        found = load_split(
            data.root,
            data.class_name,
            name,
            num_views=num_views or data.num_views,
            num_scenes=num_scenes,
            layout=data.layout,
            assume_opaque=data.assume_opaque,
            verify=data.verify,
            skip_bad=data.on_bad_scene == "skip" and name == "train",
            allow_overlap=data.allow_overlap,
        )
        height, width = found.views.images.shape[2:4]
        return Split(found.ids, found.views, (height, width), found.content)

    def assemble(self, *, size: tuple[int, int], num_rays: int | None, twice: bool = False) -> Signal:
        """Returns the functions of this kind of signal, for views of this height and width."""
        return scene_signal(self, height=size[0], width=size[1], num_rays=num_rays or 1, twice=twice)


def scene_signal(config: ViewsConfig, *, height: int, width: int, num_rays: int, twice: bool = False) -> Signal:
    """Returns the functions of scenes that a config describes; a query item is a `View`.

    Args:
      config: of views.
      height: of the views, in pixels.
      width: of the views, in pixels.
      num_rays: drawn in each inner step.
      twice: as for `choose`.
    """
    field = radiance_field(config)
    chosen = choose(field, config.field.implementation, twice=twice)
    apply = _APPLY[chosen](field)

    def render_pose(
        params: Params, pose: Float[Array, "4 4"], focal: Float[Array, ""], rays_per_chunk: int = 4096
    ) -> Rendering:
        return render_view(
            partial(apply, params),
            pose,
            focal,
            config.sampling,
            height=height,
            width=width,
            pixel_centre=config.pixel_centre,
            rays_per_chunk=rays_per_chunk,
        )

    def predict(params: Params, view: View, *, rays_per_chunk: int = 4096) -> Float[Array, "height width 3"]:
        return render_pose(params, view.pose, view.focal, rays_per_chunk).rgb

    drawing = {"num_rays": num_rays, "sampling": config.sampling, "pixel_centre": config.pixel_centre}
    loss = partial(photometric_loss, apply, **drawing)
    if chosen == "fused":
        loss = partial(loss, error=fused.fused_error(field))
    if chosen == "blocked" and not twice:
        loss = partial(loss, rays_per_block=blocked.rays_per_block(field, num_rays, config.sampling.num_samples))
    return Signal(
        init=lambda key: field.init(key, jnp.zeros((1, 3))),
        loss=loss,
        predict=predict,
        target=lambda view: composite_on_white(jnp.asarray(view.image)),
        support=views_of_scenes,
        query=lambda *chosen: each_view(views_of_scenes(*chosen)),
        output=partial(field_samples, apply, **drawing),
        mismatch=cross_entropy,
        render_pose=render_pose,
    )


_APPLY: dict[str, Callable[[RadianceField], Callable[..., Any]]] = {
    "xla": lambda field: field.apply,
    "blocked": blocked.blocked_apply,
    "fused": fused.fused_apply,
}


def field_apply(field: RadianceField, implementation: str) -> Callable[..., Any]:
    """Returns `(params, points) -> (density, rgb)`, computed in the configured way, see `choose`."""
    return _APPLY[choose(field, implementation)](field)


def choose(field: RadianceField, implementation: str, *, twice: bool = False) -> Literal["xla", "blocked", "fused"]:
    """Returns how a field is computed.

    Args:
      field: what is computed.
      implementation: "auto", "xla" or "fused", as configured.
      twice: it will be differentiated twice, which the fused kernels cannot be.

    Raises:
      InputError: the fused kernels are asked for and cannot run here; says why.
    """
    obstacle = "the algorithm needs second derivatives" if twice else fused.obstacle(field)
    if implementation == "fused" and obstacle:
        raise InputError(f"--field.implementation fused cannot run here: {obstacle}; drop it or give xla")
    if implementation == "auto" and obstacle == fused.UNKNOWN_VERSION:
        print(f"warning: no fused kernels: {obstacle}; XLA takes over, slower", file=sys.stderr)
    if implementation == "auto" and blocked.possible(field):
        return "blocked"
    return "xla" if implementation == "xla" or obstacle else "fused"


def radiance_field(config: ViewsConfig) -> RadianceField:
    """Returns the network that a config describes."""
    automatic = config.field.compute_dtype == config.field.implementation == "auto"
    narrow = automatic and blocked.bfloat16_pays(config.field.width)
    return RadianceField(
        width=config.field.width,
        depth=config.field.depth,
        num_frequencies=config.field.num_frequencies,
        max_log2_frequency=config.field.max_log2_frequency,
        density_activation=config.field.density_activation,
        compute_dtype=resolve_dtype("bfloat16" if narrow else config.field.compute_dtype),
    )


def views_of_scenes(views: Views, scenes: Int[np.ndarray, "tasks"], numbers: Int[np.ndarray, "tasks views"]) -> Views:
    """Returns the views `numbers[i]` of scene `scenes[i]`, for each i."""
    places = (scenes[:, None], numbers)
    return Views(views.images[places], views.poses[places], views.focal[scenes])


def each_view(views: Views) -> View:
    """Returns views with the focal length of their scene."""
    num_views = views.poses.shape[-3]
    return View(views.images, views.poses, np.repeat(views.focal[..., None], num_views, axis=-1))

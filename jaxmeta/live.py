"""Runs a live viewer: one thread that owns the device, and does what browsers ask for between steps and tiles."""

import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from jaxmeta import assembly, metalearning, viewing
from jaxmeta.cameras import Views
from jaxmeta.config import TrainConfig
from jaxmeta.metalearning import Params
from jaxmeta.objectives import composite_on_white
from jaxmeta.rendering import Sampling, render_view
from jaxmeta.viewing import Camera, Choice, Inbox, Session

HELD_OUT = 4
"""Views that are scored."""
MAX_HEIGHT = 1024
"""Of a picture, in pixels."""
REST = 0.15
"""Seconds without a word from a browser after which pictures are refined."""


class Scale(NamedTuple):
    """How much a device does at a time."""

    height: int
    """Of a tile, in pixels."""
    width: int
    """Of a tile, in pixels."""
    score_rays: int
    """Pixels of held-out views that a score is of."""
    quick_share: int
    """While something moves, a ray has one in so many of its samples."""
    moving_seconds: float
    """How long a picture may take while something moves."""


SLOW, FAST = Scale(16, 24, 256, 4, 0.2), Scale(128, 192, 8192, 1, 0.04)
"""Of a CPU; of a GPU or TPU."""

Tile = Callable[[Params, Float[Any, "4 4"]], UInt8[Array, "height width 3"]]


class Machine(NamedTuple):
    """The compiled functions, and the sizes that they were compiled for."""

    step: Callable[[Params, Views, int, int], Params]
    """`(params, support, scene, number)`."""
    score: Callable[[Params, Views], Float[Array, ""]]
    """PSNR in dB at some pixels of held-out views, always the same ones."""
    quick_tile: Tile
    """With few samples; the pose is of `viewing.tile_pose`."""
    tile: Tile
    scale: Scale


class Page(NamedTuple):
    """Where it is shown; `page.py` makes one."""

    show_picture: Callable[[Hashable, UInt8[np.ndarray, "height width 3"]], None]
    """To one browser, over its whole window."""
    show_session: Callable[[Session], None]
    """Its steps and scores."""
    show_support: Callable[[UInt8[np.ndarray, "views height width 3"]], None]
    """What the fits see."""


def make_machine(settings: TrainConfig, scale: Scale, seed: int) -> Machine:
    """Returns the compiled functions of a run; each compiles once.

    Args:
      settings: of the run.
      scale: how much to do at a time.
      seed: of the inner loop's draws.
    """
    field = assembly.radiance_field(settings)
    size = {"height": scale.height, "width": scale.width}
    fitting = assembly.scene_signal(settings, **size, num_rays=settings.inner.num_rays)
    judging = assembly.scene_signal(settings, **size, num_rays=scale.score_rays)
    optimiser = optax.sgd(settings.inner.step_size)
    num_samples = max(settings.sampling.num_samples // scale.quick_share, 2)
    quick = dataclasses.replace(settings.sampling, num_samples=num_samples)

    def step(params: Params, support: Views, scene: Array, number: Array) -> Params:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), scene), number)
        # Plain gradient descent keeps no state, so single steps are one long loop.
        return metalearning.adapt(fitting.loss, optimiser, params, support, key[None]).params

    def score(params: Params, views: Views) -> Float[Array, ""]:
        return -10 * jnp.log10(judging.loss(params, views, jax.random.key(seed)))

    def tile(sampling: Sampling, params: Params, pose: Float[Array, "4 4"]) -> Array:
        focal = jnp.float32(scale.height / 2)
        seen = render_view(
            partial(field.apply, params), pose, focal, sampling, **size, pixel_centre=settings.pixel_centre
        )
        return jnp.round(255 * jnp.clip(seen.rgb, 0, 1)).astype(jnp.uint8)

    return Machine(
        step=jax.jit(step),
        score=jax.jit(score),
        quick_tile=jax.jit(partial(tile, quick)),
        tile=jax.jit(partial(tile, settings.sampling)),
        scale=scale,
    )


class Data(NamedTuple):
    """What the fits of a scene see and what they are scored on, on the device."""

    support: Views
    held_out: Views


class Costs(NamedTuple):
    """Seconds that a tile takes."""

    quick: float
    full: float


def choose_data(views: Views, choice: Choice) -> Data:
    """Returns a scene's support and held-out views, as many of each whatever the choice."""

    def chosen(numbers: Any) -> Views:
        scene, numbers = np.array([choice.scene]), np.asarray(numbers)[None]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), assembly.views_of_scenes(views, scene, numbers))

    others = viewing.held_out(choice.support, views.images.shape[1], HELD_OUT)
    return Data(chosen(np.resize(choice.support, viewing.SUPPORT_SLOTS)), chosen(others))


def warm_up(machine: Machine, params: Params, views: Views) -> Costs:
    """Compiles everything, and returns how long tiles take."""
    data, camera = choose_data(views, Choice(0)), Camera(np.eye(4), 1.0, 1.0)
    jax.block_until_ready((machine.step(params, data.support, 0, 0), machine.score(params, data.held_out)))
    seconds = []
    for tile in (machine.quick_tile, machine.tile):
        render(tile, machine.scale, params, camera, 1)
        began = time.perf_counter()
        render(tile, machine.scale, params, camera, 1)
        seconds.append(time.perf_counter() - began)
    return Costs(*seconds)


def render(
    tile: Tile, scale: Scale, params: Params, camera: Camera, side: int, leave: Callable[[], bool] = lambda: False
) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
    """Returns a picture of `side * side` tiles, and whether it is whole: told to leave, it lacks the last ones."""
    height, width = scale.height, scale.width
    image = np.empty((side * height, side * width, 3), np.uint8)
    for row in range(side):
        for column in range(side):
            if leave():
                return image, False
            pose = viewing.tile_pose(camera, row, column, side, height=height, width=width)
            place = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
            image[place] = tile(params, jnp.asarray(pose, jnp.float32))
    return image, True


def begin(machine: Machine, starts: Mapping[str, Params], session: Session, data: Data) -> Session:
    """Returns a session with the scores that the initialisations have as they are."""
    scores = {name: machine.score(params, data.held_out) for name, params in starts.items()}
    return viewing.advanced(session, starts, {name: float(score) for name, score in scores.items()})


def step(machine: Machine, session: Session, data: Data) -> Session:
    """Returns a session after one more step of each fit, from the same draws."""
    number = session.step
    fits = {
        name: machine.step(params, data.support, session.choice.scene, number) for name, params in session.fits.items()
    }
    scores = {name: machine.score(params, data.held_out) for name, params in fits.items()}
    return viewing.advanced(session, fits, {name: float(score) for name, score in scores.items()})


def serve(inbox: Inbox, machine: Machine, costs: Costs, starts: Mapping[str, Params], views: Views, page: Page) -> None:
    """Does for ever what browsers ask for: the latest wishes first, then a step, then finer pictures.

    Args:
      inbox: what browsers ask for.
      machine: what computes.
      costs: of its tiles.
      starts: the initialisations.
      views: of all scenes to choose from.
      page: shows it.
    """
    session, data, pictures = Session(Choice(0)), choose_data(views, Choice(0)), {}
    finest = 2 ** int(math.log2(MAX_HEIGHT // machine.scale.height))
    show_support(page, views, session.choice)
    while True:
        busy = not session.fits or session.step < session.goal or viewing.stale(pictures)
        finer = viewing.finer(pictures, costs.full, finest)
        transitions, cameras = inbox.take(0 if busy else REST if finer else None)
        before = session
        for transition in transitions:
            session = transition(session)
        if session.choice[:2] != before.choice[:2]:
            data = choose_data(views, session.choice)
            show_support(page, views, session.choice)
        if not session.fits:
            session = begin(machine, starts, session, data)
        elif session.step < session.goal:
            session = step(machine, session, data)
        if session is not before:
            page.show_session(session)
        changed = session.fits is not before.fits or session.choice.shown != before.choice.shown
        pictures = viewing.looked(pictures, cameras, changed=changed)
        params = session.fits[session.choice.shown]
        for browser in viewing.stale(pictures):
            side = viewing.moving_side(costs.quick, machine.scale.moving_seconds, finest)
            image, _ = render(machine.quick_tile, machine.scale, params, pictures[browser].camera, side)
            pictures[browser] = pictures[browser]._replace(side=side, sharp=machine.scale.quick_share == 1)
            page.show_picture(browser, image)
        if finer and not busy and not transitions and not cameras:
            browser, side = finer
            image, whole = render(machine.tile, machine.scale, params, pictures[browser].camera, side, inbox.waiting)
            if whole:
                pictures[browser] = pictures[browser]._replace(side=side, sharp=True)
                page.show_picture(browser, image)


def show_support(page: Page, views: Views, choice: Choice) -> None:
    """Shows the support views of a choice."""
    images = composite_on_white(jnp.asarray(views.images[choice.scene, list(choice.support)]))
    page.show_support(np.asarray(jnp.round(255 * images).astype(jnp.uint8)))

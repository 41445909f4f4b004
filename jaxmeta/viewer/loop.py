"""Runs a live viewer: one thread that owns the device, and does what browsers ask for between steps and tiles."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from jaxmeta.cameras import Views
from jaxmeta.kinds.views import views_of_scenes
from jaxmeta.metalearning import Initialisation, Params
from jaxmeta.objectives import composite_on_white
from jaxmeta.viewer import pictures, sessions
from jaxmeta.viewer.machine import Machine, Scale, Tile
from jaxmeta.viewer.pictures import Camera
from jaxmeta.viewer.sessions import Choice, Fit, Inbox, Session

HELD_OUT = 4
"""Views that are scored."""
MAX_HEIGHT = 1024
"""Of a picture, in pixels."""
REST = 0.15
"""Seconds without a word from a browser after which pictures are refined."""


class Page(NamedTuple):
    """Where it is shown; `page.py` makes one."""

    show_picture: Callable[[Hashable, UInt8[np.ndarray, "height width 3"]], None]
    """To one browser, over its whole window."""
    show_session: Callable[[Session], None]
    """Its steps and scores."""
    show_support: Callable[[UInt8[np.ndarray, "views height width 3"]], None]
    """What the fits see."""


class Data(NamedTuple):
    """What the fits of a scene see and what they are scored on, on the device."""

    support: Views
    held_out: Views


class Costs(NamedTuple):
    """Seconds that a tile takes."""

    quick: float
    full: float


class Drawn(NamedTuple):
    """A picture."""

    image: UInt8[np.ndarray, "height width 3"]
    whole: bool
    seconds_per_tile: float


def choose_data(views: Views, choice: Choice) -> Data:
    """Returns a scene's support and held-out views, as many of each whatever the choice."""

    def chosen(numbers: Any) -> Views:
        scene, numbers = np.array([choice.scene]), np.asarray(numbers)[None]
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), views_of_scenes(views, scene, numbers))

    others = sessions.held_out(choice.support, views.images.shape[1], HELD_OUT)
    return Data(chosen(np.resize(choice.support, sessions.SUPPORT_SLOTS)), chosen(others))


def warm_up(machine: Machine, initialisation: Initialisation, views: Views) -> Costs:
    """Compiles everything, and returns how long tiles take."""
    data, camera = choose_data(views, Choice(0)), Camera(np.eye(4), 1.0, 1.0)
    fit = machine.step(initialisation, machine.start(initialisation), data.support, 0, 0)
    params = jax.block_until_ready((fit.params, machine.score(fit.params, data.held_out)))[0]
    seconds = []
    for tile in (machine.quick_tile, machine.tile):
        render(tile, machine.scale, params, camera, 1)
        seconds.append(render(tile, machine.scale, params, camera, 1).seconds_per_tile)
    return Costs(*seconds)


def render(
    tile: Tile, scale: Scale, params: Params, camera: Camera, side: int, leave: Callable[[], bool] = lambda: False
) -> Drawn:
    """Returns a picture of `side * side` tiles; told to leave, it lacks the last ones."""
    height, width = scale.height, scale.width
    image = np.empty((side * height, side * width, 3), np.uint8)
    began = time.perf_counter()
    for row in range(side):
        for column in range(side):
            if leave():
                return Drawn(image, False, math.nan)
            pose = pictures.tile_pose(camera, row, column, side, height=height, width=width)
            place = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
            image[place] = tile(params, jnp.asarray(pose, jnp.float32))
    return Drawn(image, True, (time.perf_counter() - began) / side**2)


def begin(machine: Machine, starts: Mapping[str, Initialisation], session: Session, data: Data) -> Session:
    """Returns a session with the scores that the initialisations have as they are."""
    return scored(machine, session, {name: machine.start(start) for name, start in starts.items()}, data)


def step(machine: Machine, starts: Mapping[str, Initialisation], session: Session, data: Data) -> Session:
    """Returns a session after one more step of each fit, from the same draws."""
    scene, number = session.choice.scene, session.step
    fits = {name: machine.step(starts[name], fit, data.support, scene, number) for name, fit in session.fits.items()}
    return scored(machine, session, fits, data)


def scored(machine: Machine, session: Session, fits: Mapping[str, Fit], data: Data) -> Session:
    """Returns a session with the fits that a step, or the beginning, led to."""
    scores = {name: machine.score(fit.params, data.held_out) for name, fit in fits.items()}
    return sessions.advanced(session, fits, {name: float(score) for name, score in scores.items()})


def serve(
    inbox: Inbox, machine: Machine, costs: Costs, starts: Mapping[str, Initialisation], views: Views, page: Page
) -> None:
    """Does for ever what browsers ask for: the latest wishes first, then a step, then finer pictures.

    Args:
      inbox: what browsers ask for.
      machine: what computes.
      costs: of its tiles.
      starts: the initialisations.
      views: of all scenes to choose from.
      page: shows it.
    """
    session, data, shown = Session(Choice(0)), choose_data(views, Choice(0)), {}
    finest = 2 ** int(math.log2(MAX_HEIGHT // machine.scale.height))
    show_support(page, views, session.choice)
    while True:
        busy = not session.fits or session.step < session.goal or pictures.stale(shown)
        finer = pictures.finer(shown, costs.full, finest)
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
            session = step(machine, starts, session, data)
        if session is not before:
            page.show_session(session)
        changed = session.fits is not before.fits or session.choice.shown != before.choice.shown
        shown = pictures.looked(shown, cameras, changed=changed)
        params = session.fits[session.choice.shown].params
        for browser in pictures.stale(shown):
            side = pictures.moving_side(costs.quick, machine.scale.moving_seconds, finest)
            drawn = render(machine.quick_tile, machine.scale, params, shown[browser].camera, side)
            costs = costs._replace(quick=(costs.quick + drawn.seconds_per_tile) / 2)
            shown[browser] = shown[browser]._replace(side=side, sharp=machine.scale.quick_share == 1)
            page.show_picture(browser, drawn.image)
        if finer and not busy and not transitions and not cameras:
            browser, side = finer
            drawn = render(machine.tile, machine.scale, params, shown[browser].camera, side, inbox.waiting)
            if drawn.whole:
                costs = costs._replace(full=(costs.full + drawn.seconds_per_tile) / 2)
                shown[browser] = shown[browser]._replace(side=side, sharp=True)
                page.show_picture(browser, drawn.image)


def show_support(page: Page, views: Views, choice: Choice) -> None:
    """Shows the support views of a choice."""
    images = composite_on_white(jnp.asarray(views.images[choice.scene, list(choice.support)]))
    page.show_support(np.asarray(jnp.round(255 * images).astype(jnp.uint8)))

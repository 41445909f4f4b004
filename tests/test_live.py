"""The thread that owns the device: what it computes, in which order, and that it compiles once."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import assembly, metalearning, optimisers
from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.config import InnerConfig, TrainConfig
from jaxmeta.kinds.views import FieldConfig, ViewsConfig, radiance_field
from jaxmeta.rendering import Sampling, render_view
from jaxmeta.viewer import loop, sessions
from jaxmeta.viewer.loop import Page
from jaxmeta.viewer.machine import Machine, Scale, make_machine
from jaxmeta.viewer.pictures import Camera
from jaxmeta.viewer.sessions import Choice, Inbox

SETTINGS = TrainConfig(
    signal=ViewsConfig(
        field=FieldConfig(width=8, depth=1, num_frequencies=2, max_log2_frequency=1.0),
        sampling=Sampling(near=2.5, far=5.5, num_samples=8),
    ),
    inner=InnerConfig(num_rays=8, step_size=0.1),
)
SCALE = Scale(height=4, width=6, score_rays=16, quick_share=4, moving_seconds=0.0)
SIGNAL = assembly.assemble(SETTINGS, size=(4, 6), num_rays=8)
CAMERA = Camera(orbit_pose(0.3, 0.4, 4.0), fov=0.8, aspect=1.5)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return make_machine(SETTINGS, SCALE, seed=3)


@pytest.fixture(scope="module")
def params():
    # Four times the start: opaque enough for differences to show.
    return jax.tree.map(lambda leaf: 4 * leaf, SIGNAL.init(jax.random.key(0)))


def test_single_steps_are_one_adaptation(params, balls):
    """With an inner optimiser that has a state, and step sizes of each step."""
    settings = dataclasses.replace(SETTINGS, inner=dataclasses.replace(SETTINGS.inner, optimiser="adam"))
    stepping = make_machine(settings, SCALE, seed=3)
    sizes = metalearning.with_step_sizes(params, granularity="leaf", num_steps=2).step_sizes
    learned = metalearning.Learned(params, jax.tree.map(lambda leaf: leaf.at[1].set(0.5), sizes))
    support = loop.choose_data(balls, Choice(1)).support
    keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), number) for number in range(3)])
    adapt = jax.jit(partial(metalearning.adapt, SIGNAL.loss, optimisers.inner_optimiser("adam", 0.1)))
    wanted, found = adapt(learned, support, keys).params, stepping.start(learned)
    for number in range(3):
        found = stepping.step(learned, found, support, 1, number)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found.params, wanted)
    assert stepping.step._cache_size() == 1


def test_the_data_of_a_choice(balls):
    data = loop.choose_data(balls, Choice(5, support=(0, 2)))
    assert data.support.images.shape[0] == sessions.SUPPORT_SLOTS
    np.testing.assert_array_equal(data.support.images[:3], balls.images[5, [0, 2, 0]])
    np.testing.assert_array_equal(data.held_out.poses, balls.poses[5, [1, 1, 3, 3]])
    assert data.held_out.focal == balls.focal[5]


def test_a_white_field_scores_what_white_does(machine, balls):
    # Density 0 shows white; the score is of pixels of the held-out views, all of which are white here.
    params = jax.tree.map(jnp.zeros_like, SIGNAL.init(jax.random.key(0)))
    params["params"]["Dense_1"]["bias"] = jnp.array([0.0, 0, 0, -50])
    data = loop.choose_data(balls._replace(images=np.zeros_like(balls.images)), Choice(0))
    assert machine.score(params, data.held_out) > 80
    black = balls._replace(images=np.broadcast_to(np.array([0, 0, 0, 255], np.uint8), balls.images.shape))
    # White where black is wanted: a mean squared error of 1 is 0 dB.
    np.testing.assert_allclose(machine.score(params, loop.choose_data(black, Choice(0)).held_out), 0, atol=1e-3)


def test_tiles_make_the_picture_of_the_whole_window(machine, params):
    focal = 8 / 2 / np.tan(CAMERA.fov / 2)
    field = partial(radiance_field(assembly.views_config(SETTINGS)).apply, params)
    pose = jnp.asarray(CAMERA.pose, jnp.float32)
    sampling = SETTINGS.signal.sampling
    wanted = 255 * np.asarray(render_view(field, pose, jnp.float32(focal), sampling, height=8, width=12).rgb)
    assert wanted.std() > 2
    found = loop.render(machine.tile, SCALE, params, CAMERA, 2)
    assert found.whole
    np.testing.assert_allclose(found.image, wanted, atol=0.51)
    quick = loop.render(machine.quick_tile, SCALE, params, CAMERA, 2).image
    assert np.abs(quick - wanted).max() > 1


def test_rendering_can_be_left_between_tiles(machine, params):
    asked = iter([False, False, True])
    drawn = loop.render(machine.tile, SCALE, params, CAMERA, 2, lambda: next(asked))
    assert not drawn.whole and next(asked, None) is None


class Ended(Exception):
    pass


class Recorder:
    """A page that notes what is shown, and posts what a script says as soon as what it waits for has happened."""

    def __init__(self, inbox: Inbox, script: list[tuple[Callable[["Recorder"], bool], Callable[[Inbox], None]]]):
        self.inbox, self.script = inbox, script
        self.steps: list[int] = []
        self.heights: list[int] = []
        self.supports: list[int] = []

    def page(self) -> Page:
        return Page(self.picture, self.session, self.support)

    def picture(self, browser, image):
        self.heights.append(len(image))
        self.go_on()

    def session(self, session):
        self.steps.append(session.step)
        self.go_on()

    def support(self, images):
        self.supports.append(len(images))

    def go_on(self):
        if self.script and self.script[0][0](self):
            self.script.pop(0)[1](self.inbox)


def end(inbox: Inbox) -> None:
    raise Ended


def played(machine: Machine, params, views: Views, script) -> Recorder:
    inbox = Inbox()
    inbox.look("browser", CAMERA)
    recorder = Recorder(inbox, script)
    starts = {"learned": params, "standard": SIGNAL.init(jax.random.key(1))}
    with pytest.raises(Ended):
        loop.serve(inbox, machine, loop.warm_up(machine, params, views), starts, views, recorder.page())
    return recorder


@pytest.fixture
def few_tiles(monkeypatch):
    monkeypatch.setattr(loop, "MAX_HEIGHT", 16)
    monkeypatch.setattr(loop, "REST", 0.01)


def test_a_session_from_beginning_to_end(machine, params, balls, few_tiles):
    """A picture at once, finer at rest; single steps; another scene and more views, another picture, another camera."""
    other = CAMERA._replace(fov=0.5)
    script = [
        (lambda seen: seen.heights == [4, 4, 8, 16], lambda inbox: inbox.change(partial(sessions.adapt, steps=3))),
        (
            lambda seen: seen.steps[-1] == 3,
            lambda inbox: inbox.change(partial(sessions.choose, scene=2, support=(0, 2))),
        ),
        (lambda seen: seen.steps[-2:] == [3, 0], lambda inbox: inbox.change(partial(sessions.adapt, steps=1))),
        (lambda seen: seen.heights[-1] == 16, lambda inbox: inbox.change(partial(sessions.choose, shown="standard"))),
        (lambda seen: seen.heights[-2:] == [8, 16], lambda inbox: inbox.look("browser", other)),
        (lambda seen: seen.heights[-4:] == [4, 4, 8, 16], end),
    ]
    seen = played(machine, params, balls, script)
    # The last 1 is the other picture.
    assert seen.steps == [0, 1, 2, 3, 0, 1, 1]
    assert seen.supports == [1, 2]
    assert not seen.script


def test_a_moved_camera_interrupts_refinement(machine, params, balls, few_tiles, monkeypatch):
    tiles = 0
    inbox_of = {}

    def tile(*arguments):
        nonlocal tiles
        tiles += 1
        if tiles == 3:  # in the middle of the 2 x 2 tiles that follow the first one
            inbox_of["inbox"].look("browser", CAMERA)
        return machine.tile(*arguments)

    monkeypatch.setattr(loop, "warm_up", lambda *_: loop.Costs(1e-9, 1e-9))
    script = [(lambda seen: inbox_of.setdefault("inbox", seen.inbox) and len(seen.heights) == 5, end)]
    seen = played(machine._replace(tile=tile, scale=SCALE), params, balls, script)
    assert seen.heights == [4, 4, 4, 4, 8]


def test_a_browser_that_left_is_shown_nothing(machine, params, balls, few_tiles):
    script = [
        (lambda seen: seen.heights == [4], lambda inbox: (inbox.look("browser", None), inbox.change(sessions.reset))),
        (lambda seen: len(seen.steps) == 2, lambda inbox: inbox.change(sessions.reset)),
        (lambda seen: len(seen.steps) == 3, end),
    ]
    assert played(machine, params, balls, script).heights == [4]


def test_everything_was_compiled_once(machine, params, balls, few_tiles):
    script = [
        (
            lambda seen: len(seen.heights) == 4,
            lambda inbox: inbox.change(partial(sessions.choose, scene=3, support=(1,))),
        ),
        (lambda seen: len(seen.steps) == 2, lambda inbox: inbox.change(partial(sessions.adapt, steps=2))),
        (lambda seen: seen.steps[-1] == 2 and seen.heights[-1] == 16, end),
    ]
    played(machine, params, balls, script)
    jitted = (machine.step, machine.score, machine.quick_tile, machine.tile)
    assert [function._cache_size() for function in jitted] == [1, 1, 1, 1]

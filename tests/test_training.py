"""Which scenes a meta-step gets, and many meta-steps at once on one device and on eight."""

import logging
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmeta.devices import replicated
from jaxmeta.feeding import FILLER, chunks, pad_batches
from jaxmeta.metalearning import adapt, fomaml, initial_state, maml, reptile, with_step_sizes
from jaxmeta.objectives import photometric_loss
from jaxmeta.training import Start, make_train_steps, plan_batches, scene_batches, take_steps

PLANS = {
    "seed": st.integers(0, 2**31),
    "first_step": st.integers(0, 40),
    "num_steps": st.integers(1, 12),
    "num_scenes": st.integers(1, 20),
    "scenes_per_step": st.integers(1, 25),
}
COLLECTIVES = r"\b(all-(?:reduce|gather|to-all)|reduce-scatter|collective-[a-z]+|send|recv)(?:-start)?\("
OUTER = optax.adam(1e-2)
INNER = optax.sgd(0.1)
START = np.array([1.0, -2.0, 0.5], np.float32)


@given(**PLANS)
def test_every_scene_has_its_turn_once_an_epoch(seed, first_step, num_steps, num_scenes, scenes_per_step):
    batches = scene_batches(seed, 0, first_step + num_steps, num_scenes=num_scenes, scenes_per_step=scenes_per_step)
    assert batches.shape == (first_step + num_steps, scenes_per_step)
    in_order = batches.ravel()
    whole_epochs = len(in_order) // num_scenes
    for epoch in np.split(in_order[: whole_epochs * num_scenes], max(whole_epochs, 1)):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_scenes)[: len(epoch)])
    begun = in_order[whole_epochs * num_scenes :]
    assert len(set(begun)) == len(begun) and set(begun) <= set(range(num_scenes))


@given(**PLANS)
def test_a_plan_may_be_cut_anywhere(seed, first_step, num_steps, num_scenes, scenes_per_step):
    plan = partial(scene_batches, seed, num_scenes=num_scenes, scenes_per_step=scenes_per_step)
    whole = plan(0, first_step + num_steps)
    np.testing.assert_array_equal(plan(first_step, num_steps), whole[first_step:])


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = [tuple(scene_batches(seed, epoch, 1, num_scenes=50, scenes_per_step=50)[0])
              for seed in (0, 1) for epoch in (0, 1, 2)]  # fmt: skip
    assert len(set(orders)) == 6


def test_padding_by_hand(mesh1, mesh8):
    batches = np.array([[3, 1, 2], [0, 5, 4]])
    np.testing.assert_array_equal(pad_batches(batches, mesh1, num_steps=3), [[3, 1, 2], [0, 5, 4], [FILLER] * 3])
    wide = pad_batches(batches, mesh8, num_steps=2)
    np.testing.assert_array_equal(wide, [[3, 1, 2] + [FILLER] * 5, [0, 5, 4] + [FILLER] * 5])


def noisy_quadratic(params, target, key):
    """Each inner step pulls towards the scene's target and a draw of its own."""
    return jnp.sum(jnp.square(params - target - jax.random.normal(key, params.shape))) / 2


class Noisy:
    """Meta-training on quadratics, with numbers in place of scenes."""

    targets = jnp.linspace(-2.0, 3.0, 20)

    def __init__(self, mesh, loss_fn=noisy_quadratic, algorithm=reptile, start=START):
        self.mesh, self.start = mesh, start
        self.train_steps = make_train_steps(
            partial(algorithm, loss_fn, loss_fn, INNER), OUTER, mesh, seed=5, num_inner_steps=3
        )

    def state(self):
        return jax.device_put(initial_state(jax.tree.map(jnp.array, self.start), OUTER), replicated(self.mesh))

    def run(self, batches, state=None, *, num_steps=4, targets=None):
        """The state and the metrics, on the host."""
        scenes = jax.device_put(self.targets if targets is None else targets, replicated(self.mesh))
        state = self.state() if state is None else jax.device_put(state, replicated(self.mesh))
        padded = pad_batches(np.asarray(batches), self.mesh, num_steps=num_steps)
        return jax.device_get(self.train_steps(state, padded, scenes))


@pytest.fixture(scope="module")
def noisy1(mesh1):
    return Noisy(mesh1)


@pytest.fixture(scope="module")
def noisy8(mesh8):
    return Noisy(mesh8)


def assert_trees_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def assert_trees_close(found, wanted, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), found, wanted)


def test_a_step_is_the_mean_reptile_step(mesh1):
    # Without noise: three steps at 0.1 leave r = 0.9^3 of the way, and the gradient is (1 - r)(params - mean target),
    # along which the first step of Adam is the learning rate long.
    quiet = Noisy(mesh1, lambda params, target, key: jnp.sum(jnp.square(params - target)) / 2)
    state, metrics = quiet.run([[4, 9]], num_steps=1)
    gradient = (1 - 0.9**3) * (START - float(Noisy.targets[4] + Noisy.targets[9]) / 2)
    np.testing.assert_allclose(state.params, START - 1e-2 * np.sign(gradient), rtol=1e-4)
    np.testing.assert_allclose(metrics.gradient_norm, [np.linalg.norm(gradient)], rtol=1e-5)
    assert metrics.losses.shape == (1, 3) and metrics.diverged.shape == (1, 2)


@pytest.mark.parametrize("scenes_per_step", [3, 13])
def test_eight_devices_do_what_one_does(noisy1, noisy8, scenes_per_step):
    batches = scene_batches(0, 0, 4, num_scenes=20, scenes_per_step=scenes_per_step)
    (state1, metrics1), (state8, metrics8) = noisy1.run(batches), noisy8.run(batches)
    assert_trees_close(state8, state1)
    assert_trees_close(metrics8.losses, metrics1.losses)
    assert_trees_close(metrics8.gradient_norm, metrics1.gradient_norm)
    assert state8.step == 4
    assert np.abs(state8.params - START).max() > 1e-2


def test_stopped_and_resumed_is_the_same_run(noisy8):
    batches = scene_batches(0, 0, 4, num_scenes=20, scenes_per_step=3)
    whole, metrics = noisy8.run(batches)
    for cut in (1, 3):
        part, first = noisy8.run(batches[:cut])
        resumed, second = noisy8.run(batches[cut:], state=part)
        assert_trees_equal(resumed, whole)
        np.testing.assert_array_equal(np.concatenate([first.losses[:cut], second.losses[: 4 - cut]]), metrics.losses)


@pytest.mark.parametrize(
    ("algorithm", "start"),
    [(fomaml, START), (maml, START), (maml, with_step_sizes(jnp.array(START), num_steps=3))],
    ids=["fomaml", "maml", "meta-sgd"],
)
def test_other_algorithms_resume_and_spread_alike(mesh1, mesh8, algorithm, start):
    noisy = Noisy(mesh8, algorithm=algorithm, start=start)
    batches = scene_batches(0, 0, 4, num_scenes=20, scenes_per_step=3)
    whole, metrics = noisy.run(batches)
    part, _ = noisy.run(batches[:3])
    resumed, _ = noisy.run(batches[3:], state=part)
    assert_trees_equal(resumed, whole)
    alone, metrics1 = Noisy(mesh1, algorithm=algorithm, start=start).run(batches)
    assert_trees_close(alone, whole)
    assert_trees_close(metrics1.gradient_norm, metrics.gradient_norm)


def test_the_query_has_draws_of_its_own(mesh1):
    # FOMAML on a loss whose gradient is the key's draw: inner step and query would give the same one.
    drawn = Noisy(mesh1, lambda params, target, key: jnp.sum(params) * jax.random.normal(key), algorithm=fomaml)
    _, metrics = drawn.run([[4]], num_steps=1)
    place_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
    inner = np.abs(jax.vmap(jax.random.normal)(jax.random.split(place_key, 3))) * np.sqrt(3)
    assert np.abs(inner - metrics.gradient_norm[0]).min() > 1e-3


def test_fillers_are_no_steps(noisy8):
    one, metrics = noisy8.run([[4, 9, 2]])
    assert one.step == 1  # of the four that were dispatched
    assert not metrics.diverged.any()
    nothing, _ = noisy8.run([[FILLER] * 3])
    assert_trees_equal(nothing, jax.device_get(noisy8.state()))


def test_every_step_and_every_place_has_its_own_draws(mesh8):
    # The loss is the draw alone, and no gradient moves anything: two steps of one scene, in one place and in another.
    drawn = Noisy(mesh8, lambda params, target, key: jax.random.normal(key) + 0.0 * jnp.sum(params))
    _, first = drawn.run([[4, FILLER], [4, FILLER]], num_steps=2)
    _, second = drawn.run([[FILLER, 4], [FILLER, 4]], num_steps=2)
    draws = np.stack([first.losses, second.losses])  # places x steps x inner steps
    assert draws.shape == (2, 2, 3)
    assert len(np.unique(draws)) == draws.size


def test_t1_a_diverged_scene_is_left_out(noisy8):
    targets = Noisy.targets.at[9].set(jnp.nan)
    state, metrics = noisy8.run([[4, 9, 2]], targets=targets)
    without, _ = noisy8.run([[4, FILLER, 2]], targets=targets)
    assert_trees_equal(state, without)
    np.testing.assert_array_equal(metrics.diverged[0], [False, True] + [False] * 6)


def test_t2_a_step_on_which_all_diverge_only_counts(noisy8):
    before, _ = noisy8.run([[4, 9, 2]])
    after, metrics = noisy8.run([[4, 9, 2]], state=before, targets=jnp.full(20, jnp.inf))
    assert_trees_equal((after.params, after.opt_state), (before.params, before.opt_state))
    assert after.step == 2
    assert metrics.diverged[0, :3].all()


def test_t16_one_compilation_for_all_chunks(mesh8, caplog):
    fresh = Noisy(mesh8)
    scenes = jax.device_put(fresh.targets, replicated(mesh8))
    state = fresh.state()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for first, num_steps in ((0, 4), (4, 4), (8, 1)):
            batches = scene_batches(0, first, num_steps, num_scenes=20, scenes_per_step=5)
            state, _ = fresh.train_steps(state, pad_batches(batches, mesh8, num_steps=4), scenes)
    compilations = [
        record for record in caplog.messages if re.match(r"Finished XLA compilation of jit\(train_steps", record)
    ]
    assert len(compilations) == 1
    assert state.step == 9


@pytest.mark.parametrize("residency", ["device", "host"])
@pytest.mark.parametrize("pauses", [(), (2, 7)])
def test_the_devices_get_the_next_chunk_before_the_last_is_read(noisy8, residency, pauses):
    events, asked = [], []

    def sent():
        plan = plan_batches(5, 0, 7, steps_per_chunk=2, num_scenes=20, scenes_per_step=3)
        fed = chunks(np.asarray(Noisy.targets), plan, noisy8.mesh, residency=residency)
        for number, chunk in enumerate(fed):
            events.append(f"sent {number}")
            yield chunk

    start = Start(0, jax.eval_shape(noisy8.state), lambda: asked.append(len(events)) or noisy8.state())
    for done in take_steps(noisy8.train_steps, start, sent(), pause=lambda before, after: after in pauses):
        events.append(f"read {done.step}")
        wanted, metrics = noisy8.run(scene_batches(5, 0, done.step, num_scenes=20, scenes_per_step=3), num_steps=7)
        assert_trees_equal(jax.device_get(done.state), wanted)
        np.testing.assert_array_equal(done.losses, metrics.losses[done.before : done.step])
    order = "sent 0,read 2,sent 1,sent 2,read 4," if 2 in pauses else "sent 0,sent 1,read 2,sent 2,read 4,"
    assert events == (order + "sent 3,read 6,read 7").split(",")
    assert asked == [1]  # once, for the first chunk


def test_a_device_runs_on_its_own_scenes_what_xla_cannot_divide(mesh8):
    shapes = set()

    def seen(target):
        shapes.add(target.shape)
        return target

    def opaque_loss(params, target, key):
        target = jax.pure_callback(seen, jax.ShapeDtypeStruct((), jnp.float32), target, vmap_method="expand_dims")
        return jnp.sum(jnp.square(params - target)) / 2

    Noisy(mesh8, opaque_loss).run([np.arange(16)], num_steps=1)
    assert shapes == {(2,)}


@pytest.fixture(scope="module")
def loss_fn(small_field, sampling):
    return partial(photometric_loss, small_field.apply, num_rays=8, sampling=sampling)


def test_radiance_fields_on_eight_devices(mesh1, mesh8, balls, small_start, loss_fn):
    batches = scene_batches(0, 0, 2, num_scenes=len(balls.images), scenes_per_step=3)
    ends = []
    for mesh in (mesh1, mesh8):
        scene_gradient = partial(reptile, loss_fn, loss_fn, INNER)
        train_steps = make_train_steps(scene_gradient, OUTER, mesh, seed=0, num_inner_steps=2)
        state = jax.device_put(initial_state(jax.tree.map(jnp.array, small_start), OUTER), replicated(mesh))
        inputs = state, pad_batches(batches, mesh, num_steps=2), jax.device_put(balls, replicated(mesh))
        compiled = train_steps.lower(*inputs).compile()
        ends.append(jax.device_get(compiled(*inputs)))
    (state1, metrics1), (state8, metrics8) = ends
    assert_trees_close(state8.params, state1.params)
    assert_trees_close(metrics8.losses, metrics1.losses)
    # The devices meet to sum the gradients, and for nothing else.
    assert set(re.findall(COLLECTIVES, compiled.as_text())) == {"all-reduce"}


def test_inner_draws_are_those_of_adapt(noisy1):
    # Replays one scene of one step: from the losses, as `adapt` gives them, with the keys of that step and place.
    _, metrics = noisy1.run([[4]], num_steps=1)
    place_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
    replay = adapt(noisy_quadratic, INNER, jnp.array(START), Noisy.targets[4], jax.random.split(place_key, 3))
    np.testing.assert_allclose(metrics.losses[0], replay.losses, rtol=1e-5)

"""Fitting unseen scenes and scoring what comes out; and the claim that a learned start makes that better."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from jaxmeta import evaluation
from jaxmeta.cameras import Views
from jaxmeta.devices import replicated
from jaxmeta.evaluation import Fit, Scores, fit_all, fit_in_batches, make_fit_scenes, select_views
from jaxmeta.metalearning import adapt, initial_state
from jaxmeta.objectives import composite_on_white, photometric_loss
from jaxmeta.rendering import render_view
from jaxmeta.training import make_train_steps, scene_batches

STAGES = (0, 1, 8)
INNER = optax.sgd(0.5)


def take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.fixture(scope="module")
def render_pose(small_field, sampling):
    def render(params, pose, focal):
        return render_view(partial(small_field.apply, params), pose, focal, sampling, height=12, width=12)

    return render


@pytest.fixture(scope="module")
def loss_fn(small_field, sampling):
    return partial(photometric_loss, small_field.apply, num_rays=32, sampling=sampling)


@pytest.fixture(scope="module")
def start(small_start):
    return jax.tree.map(jnp.asarray, small_start)


@pytest.fixture(scope="module")
def five(balls) -> Views:
    return take(balls, slice(5))


@pytest.fixture(scope="module")
def fit_eight(mesh8, balls, start, loss_fn, render_pose):
    """Eight scenes at once on eight devices, compiled."""
    eight, keys = take(balls, slice(8)), jax.random.split(jax.random.key(0), 8)
    fit_scenes = make_fit_scenes(loss_fn, INNER, render_pose, mesh8, stages=STAGES)
    return fit_scenes.lower(start, select_views(eight, [0]), select_views(eight, [3, 1]), keys).compile()


@pytest.fixture(scope="module")
def fits8(fit_eight, mesh8, five, start) -> Fit:
    """Five scenes in one batch, filled up."""
    support, query = select_views(five, [0]), select_views(five, [3, 1])
    start = jax.device_put(start, replicated(mesh8))
    return fit_all(fit_in_batches(fit_eight, start, support, query, mesh8, seed=4, batch_size=5))


def test_psnr_by_hand():
    target = jnp.full((2, 3, 3), 0.5)
    np.testing.assert_allclose(evaluation.psnr(target + 0.1, target), 20, rtol=1e-5)  # -10 log10(0.01)
    # Half the pixels are off by 0.2: the mean square is 0.02.
    half = target.at[0].add(0.2)
    np.testing.assert_allclose(evaluation.psnr(jnp.concatenate([half[:1], target[:1]]), target), 16.9897, rtol=1e-5)


def test_psnr_clips_the_image():
    white = jnp.ones((2, 2, 3))
    assert evaluation.psnr(white + 3, white) == np.inf
    np.testing.assert_allclose(evaluation.psnr(white - 3, white), 0, atol=1e-6)  # as black: an error of 1


def test_psnr_equals_the_reference(generator):
    image, target = generator.uniform(-0.3, 1.3, (4, 5, 3)), generator.uniform(0, 1, (4, 5, 3))
    found = evaluation.psnr(jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(found, reference.psnr(image, target), rtol=1e-5)


def test_select_views(balls):
    chosen = select_views(balls, [3, 1])
    np.testing.assert_array_equal(chosen.images, np.stack([balls.images[:, 3], balls.images[:, 1]], axis=1))
    np.testing.assert_array_equal(chosen.poses, np.stack([balls.poses[:, 3], balls.poses[:, 1]], axis=1))
    np.testing.assert_array_equal(chosen.focal, balls.focal)
    np.testing.assert_array_equal(select_views(take(balls, 2), [1]).images, balls.images[2, 1:2])


def test_each_stage_is_what_adapt_reaches(fits8, five, start, loss_fn):
    support = jax.tree.map(jnp.asarray, select_views(five, [0]))
    fit = jax.jit(partial(adapt, loss_fn, INNER))
    assert fits8.params["params"]["Dense_0"]["bias"].shape == (5, 3, 16)
    for scene in (0, 4):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(4), scene), STAGES[-1])
        for stage, num_steps in enumerate(STAGES):
            wanted = fit(start, take(support, scene), keys[:num_steps]).params if num_steps else start
            found = take(take(fits8.params, scene), stage)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, wanted)


def test_scores_equal_the_reference_on_each_view(fits8, five, render_pose):
    render, query = jax.jit(render_pose), select_views(five, [3, 1])
    assert fits8.scores.psnr.shape == fits8.scores.ssim.shape == (5, 3, 2)
    for scene, stage, view in ((0, 0, 0), (0, 2, 1), (4, 1, 0)):
        params = take(take(fits8.params, scene), stage)
        image = np.asarray(render(params, query.poses[scene, view], query.focal[scene]).rgb)
        target = np.asarray(composite_on_white(jnp.asarray(query.images[scene, view])))
        np.testing.assert_allclose(fits8.scores.psnr[scene, stage, view], reference.psnr(image, target), rtol=1e-4)
        np.testing.assert_allclose(fits8.scores.ssim[scene, stage, view], reference.ssim(image, target), atol=1e-4)


def test_batches_and_devices_do_not_show(mesh1, five, start, loss_fn, render_pose, fits8):
    fit_scenes = make_fit_scenes(loss_fn, INNER, render_pose, mesh1, stages=STAGES)
    support, query = select_views(five, [0]), select_views(five, [3, 1])
    batches = list(fit_in_batches(fit_scenes, start, support, query, mesh1, seed=4, batch_size=2))
    assert [len(batch.scores.psnr) for batch in batches] == [2, 2, 1]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), fit_all(batches), fits8)


def test_the_devices_do_not_talk(fit_eight):
    assert not re.search(r"\b(all-|collective-|reduce-scatter|send|recv)[a-z-]*\(", fit_eight.as_text())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("on_eight", [False, True])
def test_every_scene_is_fitted_once_with_its_own_draws(mesh1, mesh8, balls, batch_size, on_eight):
    mesh, seven = (mesh8 if on_eight else mesh1), take(balls, slice(7))
    sizes = []

    def tell(params, support, query, keys):
        """Stands for a fit: reports which scene and which key came in."""
        sizes.append(len(keys))
        np.testing.assert_array_equal(support.poses[:, 0, :3, 3], query.poses[:, 0, :3, 3])
        scores = Scores(support.poses[:, 0, :3, 3], jax.vmap(jax.random.uniform)(keys)[:, None])
        return Fit(params, scores) if params else Fit({}, scores)

    support = select_views(seven, [2])
    fits = fit_all(fit_in_batches(tell, {}, support, support, mesh, seed=9, batch_size=batch_size))
    np.testing.assert_array_equal(fits.scores.psnr, seven.poses[:, 2, :3, 3])
    draws = [jax.random.uniform(jax.random.fold_in(jax.random.key(9), scene)) for scene in range(7)]
    np.testing.assert_array_equal(fits.scores.ssim[:, 0], draws)
    assert len(set(sizes)) == 1 and sizes[0] % mesh.size == 0  # one shape, one compilation


def test_a_learned_start_beats_the_standard_one(fit_eight, mesh8, balls, start, loss_fn):
    """The claim: after the same few steps on one view of an unseen scene, the other views come out 5 dB better."""
    outer, num_steps = optax.adam(5e-3), 100
    train_steps = make_train_steps(loss_fn, INNER, outer, mesh8, seed=0, num_inner_steps=8)
    learned_from = jax.device_put(take(balls, slice(16)), replicated(mesh8))
    state = jax.device_put(initial_state(jax.tree.map(jnp.copy, start), outer), replicated(mesh8))
    state, _ = train_steps(state, learned_from, scene_batches(0, 0, num_steps, num_scenes=16, scenes_per_step=8))

    unseen = take(balls, slice(16, 24))
    support, query = select_views(unseen, [0]), select_views(unseen, [3, 1])
    standard, learned = (
        take(
            fit_all(fit_in_batches(fit_eight, params, support, query, mesh8, seed=1, batch_size=8)).scores, np.s_[:, -1]
        )
        for params in (jax.device_put(start, replicated(mesh8)), state.params)
    )
    assert learned.psnr.mean() > standard.psnr.mean() + 5
    assert learned.ssim.mean() > standard.ssim.mean() + 0.3

"""Fitting unseen scenes and scoring what comes out; and the claim that a learned start makes that better."""

import re
import time
from functools import partial

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import skimage.metrics

from jaxmeta import evaluation
from jaxmeta.cameras import Views
from jaxmeta.devices import replicated
from jaxmeta.evaluation import Fit, Scores, fit_all, fit_in_batches, make_adapt, make_score
from jaxmeta.kinds.views import each_view, views_of_scenes
from jaxmeta.metalearning import adapt, initial_state, reptile
from jaxmeta.objectives import composite_on_white, photometric_loss
from jaxmeta.rendering import render_view
from jaxmeta.training import make_train_steps, scene_batches

STAGES = (0, 1, 8)
INNER = optax.sgd(0.5)


def take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def support_of(views, numbers=(0,)):
    """The same views of every scene."""
    scenes = np.arange(len(views.focal))
    return views_of_scenes(views, scenes, np.tile(numbers, (len(scenes), 1)))


def query_of(views, numbers=(3, 1)):
    return each_view(support_of(views, numbers))


def target(view):
    return composite_on_white(jnp.asarray(view.image))


@pytest.fixture(scope="module")
def predict(small_field, sampling):
    def render(params, view):
        field = partial(small_field.apply, params)
        return render_view(field, view.pose, view.focal, sampling, height=12, width=12).rgb

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
def fit_eight(mesh8, balls, start, loss_fn, predict):
    """Eight scenes at once on eight devices, compiled: adapts, and scores."""
    eight, keys = take(balls, slice(8)), jax.random.split(jax.random.key(0), 8)
    adapt_tasks = make_adapt(loss_fn, INNER, mesh8, stages=STAGES)
    adapted = jax.eval_shape(adapt_tasks, start, support_of(eight), keys)
    score_tasks = make_score(predict, target, mesh8)
    compiled = adapt_tasks.lower(start, support_of(eight), keys), score_tasks.lower(adapted, query_of(eight))
    return tuple(lowered.compile() for lowered in compiled)


@pytest.fixture(scope="module")
def fits8(fit_eight, mesh8, five, start) -> Fit:
    """Five scenes in one batch, filled up."""
    return fit_all(fit_in_batches(*fit_eight, start, support_of(five), query_of(five), mesh8, seed=4, batch_size=5))


def test_psnr_by_hand():
    target = jnp.full((2, 3, 3), 0.5)
    np.testing.assert_allclose(evaluation.psnr(target + 0.1, target), 20, rtol=1e-5)  # -10 log10(0.01)
    # Half the pixels are off by 0.2: the mean square is 0.02.
    half = target.at[0].add(0.2)
    np.testing.assert_allclose(evaluation.psnr(jnp.concatenate([half[:1], target[:1]]), target), 16.9897, rtol=1e-5)


def test_psnr_clips_the_image():
    white = jnp.ones((2, 2, 3))
    np.testing.assert_allclose(evaluation.psnr(white + 3, white), 100, rtol=1e-5)  # no error counts as 1e-10
    np.testing.assert_allclose(evaluation.psnr(white - 3, white), 0, atol=1e-6)  # as black: an error of 1


def test_psnr_equals_the_reference(generator):
    image, target = generator.uniform(-0.3, 1.3, (4, 5, 3)), generator.uniform(0, 1, (4, 5, 3))
    found = evaluation.psnr(jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(found, reference.psnr(image, target), rtol=1e-5)


def test_ssim_of_an_image_smaller_than_its_window_is_not_a_number():
    small, fits = jnp.ones((10, 30, 3)), jnp.ones((11, 11, 3))
    assert np.isnan(evaluation.ssim(small, small))
    np.testing.assert_allclose(evaluation.ssim(fits, fits), 1, rtol=1e-6)


def test_images_of_one_channel(generator):
    image, target = generator.uniform(0, 1, (2, 12, 13, 1))
    found = evaluation.ssim(jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(found, reference.ssim(image, target), atol=1e-4)


def test_each_stage_is_what_adapt_reaches(fits8, five, start, loss_fn):
    support = jax.tree.map(jnp.asarray, support_of(five))
    fit = jax.jit(partial(adapt, loss_fn, INNER))
    assert fits8.params["params"]["Dense_0"]["bias"].shape == (5, 3, 16)
    for scene in (0, 4):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(4), scene), STAGES[-1])
        for stage, num_steps in enumerate(STAGES):
            wanted = fit(start, take(support, scene), keys[:num_steps]).params if num_steps else start
            found = take(take(fits8.params, scene), stage)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, wanted)


def test_scores_equal_the_reference_on_each_view(fits8, five, predict):
    render, query = jax.jit(predict), query_of(five)
    assert fits8.scores.psnr.shape == fits8.scores.ssim.shape == (5, 3, 2)
    for scene, stage, view in ((0, 0, 0), (0, 2, 1), (4, 1, 0)):
        params = take(take(fits8.params, scene), stage)
        image = np.asarray(render(params, take(query, (scene, view))))
        wanted = np.asarray(target(take(query, (scene, view))))
        np.testing.assert_allclose(fits8.scores.psnr[scene, stage, view], reference.psnr(image, wanted), rtol=1e-4)
        np.testing.assert_allclose(fits8.scores.ssim[scene, stage, view], reference.ssim(image, wanted), atol=1e-4)


def test_scikit_image_agrees_on_the_written_pictures(fits8, five, predict, tmp_path):
    query, (scene, stage, view) = query_of(five), (1, 2, 0)
    item = take(query, (scene, view))
    shown = {"image": jax.jit(predict)(take(take(fits8.params, scene), stage), item), "target": target(item)}
    for name, picture in shown.items():
        iio.imwrite(tmp_path / f"{name}.png", np.round(255 * np.asarray(picture)).astype(np.uint8), plugin="pillow")
    image, wanted = (iio.imread(tmp_path / f"{name}.png", plugin="pillow") for name in shown)
    # A byte is off by 1/510 at most, and by 1/255/sqrt(12) in the mean: far below these errors.
    found = skimage.metrics.peak_signal_noise_ratio(wanted, image)
    np.testing.assert_allclose(fits8.scores.psnr[scene, stage, view], found, atol=0.02)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    found = skimage.metrics.structural_similarity(wanted, image, data_range=255, **window)
    np.testing.assert_allclose(fits8.scores.ssim[scene, stage, view], found, atol=2e-3)


def test_batches_and_devices_do_not_show(mesh1, five, start, loss_fn, predict, fits8):
    both = make_adapt(loss_fn, INNER, mesh1, stages=STAGES), make_score(predict, target, mesh1)
    batches = list(fit_in_batches(*both, start, support_of(five), query_of(five), mesh1, seed=4, batch_size=2))
    assert [len(batch.scores.psnr) for batch in batches] == [2, 2, 1]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), fit_all(batches)[:2], fits8[:2])


def test_the_devices_do_not_talk(fit_eight):
    for compiled in fit_eight:
        assert not re.search(r"\b(all-|collective-|reduce-scatter|send|recv)[a-z-]*\(", compiled.as_text())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("on_eight", [False, True])
def test_every_scene_is_fitted_once_with_its_own_draws(mesh1, mesh8, balls, batch_size, on_eight):
    mesh, seven = (mesh8 if on_eight else mesh1), take(balls, slice(7))
    sizes = []

    def tell(params, support, keys):
        """Stands for an adaptation: reports which scene and which key came in."""
        sizes.append(len(keys))
        return support.poses[:, 0, :3, 3], jax.vmap(jax.random.uniform)(keys)[:, None]

    def agree(adapted, query):
        np.testing.assert_array_equal(adapted[0], query.pose[:, 0, :3, 3])
        return Scores(*adapted)

    both = support_of(seven, [2]), query_of(seven, [2])
    fits = fit_all(fit_in_batches(tell, agree, {}, *both, mesh, seed=9, batch_size=batch_size, keep_every=0))
    assert fits.params is None and (fits.seconds > 0).all()
    np.testing.assert_array_equal(fits.scores.psnr, seven.poses[:, 2, :3, 3])
    draws = [jax.random.uniform(jax.random.fold_in(jax.random.key(9), scene)) for scene in range(7)]
    np.testing.assert_array_equal(fits.scores.ssim[:, 0], draws)
    assert len(set(sizes)) == 1 and sizes[0] % mesh.size == 0  # one shape, one compilation


@pytest.mark.parametrize("repeat_below", [0.0, 0.1, 100.0])
def test_the_first_call_of_a_program_is_not_timed_if_it_is_short(mesh1, balls, repeat_below):
    pauses = iter([0.2, 0.0, 0.0, 0.0])

    def adapt_tasks(params, support, keys):
        time.sleep(next(pauses))
        return params

    batches = evaluation.adapt_in_batches(
        adapt_tasks, {}, support_of(take(balls, slice(3))), mesh1, seed=0, batch_size=1, repeat_below=repeat_below
    )
    first, *others = [seconds for *_, seconds in batches]
    assert len(others) == 2 and (first < 0.1) == (repeat_below > 0.2)
    assert len(list(pauses)) == (0 if repeat_below > 0.2 else 1)


def test_a_learned_start_beats_the_standard_one(fit_eight, mesh8, balls, start, loss_fn):
    """The claim: after the same few steps on one view of an unseen scene, the other views come out 5 dB better."""
    outer, num_steps = optax.adam(5e-3), 100
    train_steps = make_train_steps(partial(reptile, loss_fn, loss_fn, INNER), outer, mesh8, seed=0, num_inner_steps=8)
    learned_from = jax.device_put(take(balls, slice(16)), replicated(mesh8))
    state = jax.device_put(initial_state(jax.tree.map(jnp.copy, start), outer), replicated(mesh8))
    state, _ = train_steps(state, scene_batches(0, 0, num_steps, num_scenes=16, scenes_per_step=8), learned_from)

    unseen = take(balls, slice(16, 24))
    both = support_of(unseen), query_of(unseen)
    standard, learned = (
        take(fit_all(fit_in_batches(*fit_eight, params, *both, mesh8, seed=1, batch_size=8)).scores, np.s_[:, -1])
        for params in (start, state.params)
    )
    assert learned.psnr.mean() > standard.psnr.mean() + 5
    assert learned.ssim.mean() > standard.ssim.mean() + 0.3

"""Comparing initialisations on signals that are no scenes: pictures of one channel that are their own network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

from eval import progress
from jaxmeta import capacity, comparison
from jaxmeta.capacity import compile_adapt
from jaxmeta.comparison import Subject, compare, num_fits
from jaxmeta.evaluation import Fit, Scores, make_adapt
from jaxmeta.protocols import Plan
from jaxmeta.signals import Signal
from jaxmeta.tasks import make_tasks

NUM_SCENES, NUM_VIEWS, RATE = 3, 5, 0.25
DATA = np.random.default_rng(0).uniform(0.2, 0.8, (NUM_SCENES, NUM_VIEWS, 2, 3, 1)).astype(np.float32)
BLACK, GREY = {"w": jnp.zeros((2, 3, 1))}, {"w": jnp.full((2, 3, 1), 0.5)}


def pictures(traces: list[str] | None = None) -> Signal:
    """The network is the picture; each step pulls it to one of the support views, at random."""

    def loss(params, support, key):
        view = support[jax.random.randint(key, (), 0, len(support))]
        return jnp.sum(jnp.square(params["w"] - view)) / 2

    def predict(params, item, *, rays_per_chunk):
        if traces is not None:
            traces.append("predict")
        return params["w"]

    def chosen(data, scenes, numbers):
        return data[scenes[:, None], numbers]

    return Signal(
        init=lambda key: {"w": jax.random.uniform(key, (2, 3, 1))},
        loss=loss,
        predict=predict,
        target=lambda item: item,
        support=chosen,
        query=chosen,
        output=lambda params, support, key: params["w"],
    )


def plan(**changes: object) -> Plan:
    usual = Plan("free", ((0,),), (3, 4), 0, (0, 2), 1, "sgd", RATE)
    return usual._replace(**changes)


def psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    return -10 * np.log10(np.mean((image - wanted) ** 2))


@pytest.fixture(scope="module")
def compared(mesh1):
    """Two initialisations, two seeds, one and two support views; and how often anything was traced."""
    traces, done = [], []
    starts = {seed: {"black": BLACK, "learned": GREY} for seed in (7, 8)}
    wanted = plan(supports=((0,), (0, 2)))
    subject = Subject(pictures(traces), DATA, NUM_SCENES, NUM_VIEWS)
    outcomes, shown = compare(subject, wanted, starts, mesh1, num_at_once=2, tell=done.append)
    assert sum(done) == num_fits(wanted, starts, NUM_SCENES) == 2 * 2 * 2 * 3
    return outcomes, shown, traces


def test_every_combination_is_there_once(compared):
    found = [(o.num_support, o.seed, o.initialisation) for o in compared[0]]
    assert found == [(v, seed, name) for v in (1, 2) for seed in (7, 8) for name in ("black", "learned")]


def test_scores_are_those_of_gradient_descent(compared):
    # One support view: each step leaves 1 - RATE of the way to it, so that two leave its square.
    for outcome in compared[0][:4]:
        start = 0.0 if outcome.initialisation == "black" else 0.5
        for scene in range(NUM_SCENES):
            for stage, left in enumerate((1.0, (1 - RATE) ** 2)):
                image = DATA[scene, 0] + left * (start - DATA[scene, 0])
                wanted = [psnr(image, DATA[scene, view]) for view in (3, 4)]
                np.testing.assert_allclose(outcome.scores.psnr[scene, stage], wanted, rtol=1e-4)
        assert np.isnan(outcome.scores.ssim).all()  # 2 x 3 pixels
        assert outcome.seconds > 0
        assert outcome.support.tolist() == [[[0], [0]]] * NUM_SCENES and outcome.query.tolist() == [[3, 4]] * NUM_SCENES
    assert compared[0][-1].support.tolist() == [[[0, 2], [0, 2]]] * NUM_SCENES


def test_comparisons_are_paired_and_seeds_are_not(compared):
    # Two support views: each step draws one for both initialisations, so that what differs is their start alone.
    (seed7, learned7), (seed8, _) = ((o.scores.psnr[:, 1, 0] for o in compared[0][4:][i : i + 2]) for i in (0, 2))
    choices = [(DATA[:, a], DATA[:, b]) for a in (0, 2) for b in (0, 2)]

    def reached(start: float) -> np.ndarray:
        """The score of each scene for each order of the two draws."""
        images = [(start * 0.75 + 0.25 * a) * 0.75 + 0.25 * b for a, b in choices]
        return np.array([[psnr(image[i], DATA[i, 3]) for image in images] for i in range(NUM_SCENES)])

    drawn = np.argmin(np.abs(reached(0.0) - seed7[:, None]), axis=1)
    np.testing.assert_allclose(reached(0.0)[np.arange(NUM_SCENES), drawn], seed7, rtol=1e-4)
    np.testing.assert_allclose(reached(0.5)[np.arange(NUM_SCENES), drawn], learned7, rtol=1e-4)
    assert np.abs(seed7 - seed8).max() > 1e-3


def test_all_share_one_program(compared):
    assert compared[2] == ["predict"]


def test_pictures_are_made_of_the_first_seed_and_number_of_views(compared):
    outcomes, shown, _ = compared
    assert list(shown.fits) == ["black", "learned"]
    np.testing.assert_array_equal(shown.tasks.support, [[0]] * NUM_SCENES)
    np.testing.assert_array_equal(shown.tasks.query, [[3, 4]] * NUM_SCENES)
    np.testing.assert_array_equal(shown.fits["black"].scores.psnr, outcomes[0].scores.psnr)
    wanted = DATA[:, 0] * (1 - (1 - RATE) ** 2)
    np.testing.assert_allclose(shown.fits["black"].params["w"][:, 1], wanted, rtol=1e-5)


def test_draws_are_folded_into_views(mesh1):
    subject = Subject(pictures(), DATA, NUM_SCENES, NUM_VIEWS)
    drawn = plan(supports=(), query=(), draws=4, stages=(0,))
    outcomes, shown = compare(subject, drawn, {2: {"learned": GREY}}, mesh1, num_at_once=None, tell=lambda _: None)
    (outcome,) = outcomes
    assert outcome.query.shape == (NUM_SCENES, 4) and outcome.num_support == 1
    for scene in range(NUM_SCENES):
        wanted = [psnr(np.full((2, 3, 1), 0.5), DATA[scene, view]) for view in outcome.query[scene]]
        np.testing.assert_allclose(outcome.scores.psnr[scene, 0], wanted, rtol=1e-4)
    np.testing.assert_array_equal(shown.tasks.scenes, np.arange(NUM_SCENES))
    np.testing.assert_array_equal(shown.tasks.query[:, 0], outcome.query[:, 0])
    drawn_pairs = make_tasks(drawn, (), seed=2, num_scenes=NUM_SCENES, num_views=NUM_VIEWS)
    np.testing.assert_array_equal(outcome.support.ravel(), drawn_pairs.support.ravel())
    assert shown.fits["learned"].params["w"].shape == (NUM_SCENES, 1, 2, 3, 1)


def test_by_scene_keeps_draws_in_order():
    # Two scenes of three draws; a score says its task, stage and view.
    scores = 100 * np.arange(6)[:, None, None] + 10 * np.arange(2)[:, None] + np.arange(2.0)
    fit = comparison.by_scene(Fit(None, Scores(scores, scores), np.arange(6.0)), 2)
    np.testing.assert_array_equal(fit.scores.psnr[1, 1], [310, 311, 410, 411, 510, 511])
    np.testing.assert_array_equal(fit.seconds, [1, 4])


def test_as_many_at_once_as_memory_holds(mesh1, monkeypatch):
    support = np.zeros((40, 1, 2, 3, 1), np.float32)
    adapt = make_adapt(pictures().loss, optax.sgd(RATE), mesh1, stages=[1])

    def size(limit: int | None, num_at_once: int | None = None) -> int:
        monkeypatch.setattr(capacity, "memory_limit", lambda: limit)
        monkeypatch.setattr(capacity, "memory_needed", lambda compiled: 16 * 100)
        return compile_adapt(adapt, BLACK, support, mesh1, num_at_once=num_at_once)[1]

    assert size(None) == 4
    assert size(10**6) == 40  # 100 bytes each
    assert size(4200) == 20  # 21 fit into half of it; two even batches
    assert size(150) == 1
    assert size(10**6, num_at_once=7) == 7


@pytest.mark.parametrize(("every", "lines"), [(0.0, ["fit 2/8  eta", "fit 6/8  eta"]), (1e9, [])])
def test_progress_is_told_where_there_is_no_terminal(capsys, every, lines):
    tell = progress(tqdm(total=8, disable=True), every=every)
    tell(2)
    tell(4)
    assert [line[:12] for line in capsys.readouterr().out.splitlines()] == lines

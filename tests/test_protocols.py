"""The protocols of others, what flags and data change of them, and the tasks that come out."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import refused

from jaxmeta import protocols
from jaxmeta.config import InnerConfig
from jaxmeta.kinds.images import ImagesConfig
from jaxmeta.protocols import EvalConfig, Plan, resolve
from jaxmeta.signals import Protocol
from jaxmeta.tasks import first_draws, make_tasks, views_needed

INNER = InnerConfig(num_rays=77, step_size=0.25)


def plan(num_views: int = 25, **flags: object) -> Plan:
    wanted = EvalConfig(run=Path("a"), **flags)
    protocols.check(wanted)
    return resolve(wanted, INNER, num_views)


@pytest.mark.parametrize(
    ("name", "num_views", "query", "stages", "rest"),
    [
        (None, 25, range(1, 23, 3), (0, 1, 10, 32, 100, 1000), (77, "sgd", 0.25)),
        ("original", 25, range(1, 23, 3), (0, 1, 10, 32, 100, 1000), (128, "sgd", 0.5)),
        ("learnit", 50, range(25, 50), (0, 1, 10, 32, 100, 1000), (64, "sgd", 0.5)),
        ("nerf-meta", 25, range(1, 25), (0, 1, 10, 32, 100, 1000), (64, "sgd", 0.5)),
        ("nerf-meta", 49, range(1, 25), (0, 1, 10, 32, 100, 1000), (64, "sgd", 0.5)),
        ("nerf-meta", 50, range(1, 26), (0, 1, 10, 32, 100, 1000), (64, "sgd", 0.5)),
        ("trans-inr", 25, (), (0, 100), (1024, "adam", 1e-4)),
    ],
)
def test_protocols_are_those_of_the_table(name, num_views, query, stages, rest):
    found = plan(num_views, protocol=name)
    assert (found.query, found.stages, found[5:]) == (tuple(query), stages, rest)
    assert (found.supports, found.draws) == (((), 100) if name == "trans-inr" else (((0,),), 0))


def test_a_flag_beside_a_protocol_wins():
    found = plan(protocol="nerf-meta", support=(3,), query=(0, 2), stages=(5,), num_rays=9, step_size=0.1)
    told = "nerf-meta, changed: support, query, stages, num-rays, step-size"
    assert found == Plan(told, ((3,),), (0, 2), 0, (5,), 9, "sgd", 0.1)
    assert plan(protocol="trans-inr", draws=2, optimiser="sgd", step_size=1.0)[3:] == (2, (0, 100), 1024, "sgd", 1.0)
    assert plan(protocol="trans-inr", draws=0, query=(5,)).supports == ((0,),)


@pytest.mark.parametrize(
    ("name", "num_views", "flags", "told"),
    [
        ("nerf-meta", 25, {}, "nerf-meta"),
        ("nerf-meta", 50, {"support": (0,), "stages": (0, 1, 10, 32, 100, 1000), "step_size": 0.5}, "nerf-meta"),
        ("nerf-meta", 50, {"query": tuple(range(1, 25))}, "nerf-meta, changed: query"),
        ("nerf-meta", 50, {"view_counts": (1, 2)}, "nerf-meta, changed: support"),
        ("nerf-meta", 25, {"step_size": 0.4}, "nerf-meta, changed: step-size"),
        ("nerf-meta", 25, {"draws": 3}, "nerf-meta, changed: draws"),
        ("learnit", 25, {"query": (1,)}, "learnit, changed: query"),
        ("original", 25, {"num_rays": 64}, "original, changed: num-rays"),
        ("original", 25, {"seeds": (1, 2), "num_scenes": 3, "baselines": ()}, "original"),
        ("trans-inr", 25, {}, "trans-inr"),
        ("trans-inr", 25, {"draws": 99}, "trans-inr, changed: draws"),
        (None, 25, {"step_size": 0.4}, "free"),
    ],
)
def test_a_protocol_that_was_changed_is_called_so(name, num_views, flags, told):
    assert plan(num_views, protocol=name, **flags).protocol == told


def test_support_views_grow_and_are_never_scored():
    found = plan(25, support=(3, 2), view_counts=(1, 2, 3, 5, 17))
    assert found.supports[:4] == ((3,), (3, 2), (3, 2, 0), (3, 2, 0, 5, 6))
    assert len(found.supports[4]) == 17 and not set(found.supports[4]) & {1, 7, 10, 13, 16, 19, 22}


def test_the_optimiser_is_that_of_the_training():
    adam = InnerConfig(optimiser="adam", step_size=0.01)
    resolved = partial(protocols.resolve, inner=adam, num_views=25)
    assert resolved(EvalConfig(run=Path("a")))[6:] == ("adam", 0.01)
    assert resolved(EvalConfig(run=Path("a"), protocol="original"))[6:] == ("sgd", 0.5)
    with refused("--optimiser sgd needs a --step-size"):
        resolved(EvalConfig(run=Path("a"), optimiser="sgd"))


@pytest.mark.parametrize(
    ("num_views", "flags", "message"),
    [
        (25, {"protocol": "learnit"}, "--protocol learnit wants at least 50 views a scene, the data have 25"),
        (24, {"protocol": "nerf-meta"}, "--protocol nerf-meta wants at least 25 views a scene, the data have 24"),
        (22, {}, "the usual query views go up to 22, the data have 22; give --query"),
        (
            25,
            {"view_counts": (1, 25)},
            r"--view-counts \(1, 25\): the scenes have 25 views, of which 8 are for the query",
        ),
        (25, {"support": (25,)}, "--support asks for view 25, but the scenes have 25 views, numbered from 0 to 24"),
        (25, {"query": (3, 99)}, "--query asks for view 99, but .*; choose among these"),
        (25, {"query": (1, 0)}, r"--query \(1, 0\) holds the support views \[0\]; they are not held out"),
        (1, {"protocol": "trans-inr"}, "a support and another query view are drawn, but the scenes have 1 view"),
        (25, {"protocol": "trans-inr", "support": (0,)}, r"--support \(0,\) does not go with random draws"),
        (25, {"draws": 3, "view_counts": (1,)}, r"--view-counts \(1,\) does not go with random draws"),
        (
            4,
            {"draws": 13},
            "--draws 13 are more than the 12 pairs of a support and another query view that 4 views make",
        ),
        (25, {"optimiser": "adam"}, "--optimiser adam needs a --step-size"),
        (25, {"seeds": ()}, r"--seeds \(\) must be"),
        (25, {"seeds": (1, 1)}, r"--seeds \(1, 1\) must be"),
        (25, {"baselines": ("mean", "mean")}, "--baselines mean mean names one twice; name each once"),
        (25, {"view_counts": (2, 1)}, r"--view-counts \(2, 1\) must be"),
        (25, {"view_counts": (0, 1)}, r"--view-counts \(0, 1\) must be"),
    ],
)
def test_what_cannot_be_done_is_refused(num_views, flags, message):
    with refused(message):
        plan(num_views, **flags)


def test_parts_that_overlap_are_not_counted_and_a_slice_is_scored_whole():
    of_images, of_slices = (Protocol(queries=((1, (0,)),), held_out=False, even=even) for even in (False, True))
    with refused(r"--view-counts \(1, 2\) is for scenes seen in views and for CT"):
        protocols.check(EvalConfig(run=Path("a"), view_counts=(1, 2)), of_images)
    with refused(r"--query \(3,\) is for scenes seen in views; here the slice is scored"):
        protocols.check(EvalConfig(run=Path("a"), query=(3,)), of_slices)
    protocols.check(EvalConfig(run=Path("a"), query=(0,), view_counts=(1, 2)), of_slices)


@pytest.mark.parametrize("flags", [{"draws": 3}, {"protocol": "trans-inr"}])
def test_only_views_are_drawn(flags):
    of_images = Protocol(queries=((1, (0,)),), held_out=False)
    with refused("is for scenes seen in views; this run is of another kind"):
        protocols.check(EvalConfig(run=Path("a"), **flags), of_images)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("stages", (0, 10, 10)),
        ("stages", (10, 1)),
        ("stages", (-1, 1)),
        ("stages", ()),
        ("support", ()),
        ("support", (-1,)),
        ("support", (1, 1)),
        ("query", ()),
        ("query", (2, -3)),
        ("num_rays", 0),
        ("step_size", float("nan")),
        ("num_scenes", -2),
        ("baseline_steps", 0),
        ("draws", -1),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(flag, value):
    with refused(f"--{flag.replace('_', '-')} "):
        protocols.check(dataclasses.replace(EvalConfig(run=Path("a")), **{flag: value}))


@pytest.mark.parametrize(
    ("support", "query", "shares"),
    [((0,), (0,), None), ((1,), (2,), None), ((3,), (4,), None), ((0,), (2,), "--query 2 .* --support 0"),
     ((1, 3), (2,), "--query 2 .* --support 3"), ((4,), (1, 2), "--query 1 .* --support 4")],
)  # fmt: skip
def test_parts_of_a_picture_that_share_pixels_are_refused(support, query, shares):
    wanted, usual = EvalConfig(run=Path("a"), support=support, query=query), ImagesConfig().protocol
    if shares:
        with refused(shares):
            resolve(wanted, INNER, 5, usual)
    else:
        assert resolve(wanted, INNER, 5, usual).query == query


def test_fixed_tasks():
    tasks = make_tasks(plan(support=(0, 3), query=(1, 2)), (0, 3), seed=5, num_scenes=3, num_views=25)
    np.testing.assert_array_equal(tasks.scenes, [0, 1, 2])
    np.testing.assert_array_equal(tasks.support, [[0, 3]] * 3)
    np.testing.assert_array_equal(tasks.query, [[1, 2]] * 3)
    assert views_needed(plan(support=(0, 3), query=(1, 2)), 25) == 4


def test_drawn_tasks_follow_from_the_seed():
    drawn = plan(protocol="trans-inr")
    tasks = make_tasks(drawn, (), seed=5, num_scenes=3, num_views=4)
    assert tasks.support.shape == tasks.query.shape == (300, 1)
    np.testing.assert_array_equal(tasks.scenes, np.repeat([0, 1, 2], 100))
    assert (tasks.support != tasks.query).all()
    pairs = {(int(s), int(q)) for s, q in zip(tasks.support[:, 0], tasks.query[:, 0], strict=True)}
    assert len(pairs) == 12  # all that there are: 300 draws miss one of them with odds of 12 (11 / 12)^300 = 1e-10
    fewer = make_tasks(drawn, (), seed=5, num_scenes=2, num_views=4)
    assert all((a == b[:200]).all() for a, b in zip(fewer, tasks, strict=True))
    other = make_tasks(drawn, (), seed=6, num_scenes=3, num_views=4)
    assert (other.support != tasks.support).any() and (tasks.support[:100] != tasks.support[100:200]).any()
    np.testing.assert_array_equal(first_draws(tasks, 3).query, tasks.query[[0, 100, 200]])
    assert views_needed(drawn, 25) == 25

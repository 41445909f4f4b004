"""Settings: presets, what is refused, what is kept on disk, and the optimiser that they describe."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from jaxmeta import config, configfiles, optimisers
from jaxmeta.config import OuterConfig, TrainConfig
from jaxmeta.errors import InputError
from jaxmeta.kinds.views import FieldConfig, ViewsConfig
from jaxmeta.metalearning import Learned, with_step_sizes
from jaxmeta.presets import PRESETS
from jaxmeta.rendering import Sampling


def changed(settings, flag: str, value):
    """The settings with what a flag of the command line would change."""
    name, _, rest = flag.replace("-", "_").partition(".")
    if not hasattr(settings, name):  # the kind of signal has it
        return dataclasses.replace(settings, signal=changed(settings.signal, flag, value))
    return dataclasses.replace(settings, **{name: changed(getattr(settings, name), rest, value) if rest else value})


def outer_steps(settings: OuterConfig, gradients) -> list[float]:
    """How far each gradient in turn moves a parameter."""
    optimiser = optimisers.outer_optimiser(settings)
    state, moves = optimiser.init(jnp.zeros(())), []
    for gradient in gradients:
        move, state = optimiser.update(jnp.float32(gradient), state)
        moves.append(float(move))
    return moves


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound_and_survive_the_disk(name, tmp_path):
    settings = PRESETS[name][1]
    config.check(settings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.as_dict(settings)))
    assert configfiles.load(path) == settings


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_commands(name):
    parsed = tyro.extras.overridable_config_cli(PRESETS, args=[name, "--data.root", "x", "--inner.step-size", "0.25"])
    assert parsed == changed(changed(PRESETS[name][1], "data.root", Path("x")), "inner.step-size", 0.25)


def test_the_original_preset_has_the_originals_settings():
    settings = PRESETS["original"][1]
    views = settings.signal
    assert isinstance(views, ViewsConfig)
    assert views.field == FieldConfig(
        width=256,
        depth=5,
        num_frequencies=20,
        max_log2_frequency=8.0,
        density_activation="relu",
        compute_dtype="float32",
    )
    assert views.sampling == Sampling(near=2.0, far=6.0, num_samples=128, last_interval=1e10)
    assert settings.inner == config.InnerConfig(num_steps=32, num_rays=128, step_size=0.5)
    assert (views.pixel_centre, views.data.num_views) == (0.0, 25)
    assert settings.outer == OuterConfig(num_steps=100_000, num_scenes=1, learning_rate=5e-5)


COUNTS = (
    "data.num-views", "field.width", "field.depth", "field.num-frequencies", "inner.num-steps", "inner.num-rays",
    "inner.unroll", "inner.num-query-rays",
    "outer.num-steps", "outer.num-scenes", "sampling.num-samples", "log-every", "checkpoint-every",
    "validation.num-steps", "validation.num-scenes",
)  # fmt: skip
SIZES = (
    "inner.step-size",
    "outer.step-sizes.learning-rate",
    "outer.learning-rate",
    "sampling.near",
    "sampling.far",
    "sampling.last-interval",
)


@pytest.mark.parametrize(
    ("flag", "value"),
    [(flag, value) for flag in COUNTS for value in (0, -1)]
    + [(flag, value) for flag in SIZES for value in (0.0, -1.0, float("nan"))],
)
def test_counts_and_sizes_must_be_positive(flag, value):
    with pytest.raises(InputError, match=f"--{flag} {value}"):
        config.check(changed(TrainConfig(), flag, value))


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("sampling.far", 2.0, "must exceed --sampling.near 2.0"),
        ("sampling.num-samples", 1, "at least 2"),
        ("validation.query", (4, 25), "from 0 to 24"),
        ("validation.query", (4, 0), r"holds the support views \[0\]; they are not held out"),
        ("validation.support", (25,), "from 0 to 24"),
        ("validation.query", (), "must not be empty"),
        ("inner.num-rays", None, "give a number"),
    ],
)
def test_what_cannot_be_meant_is_refused(flag, value, wanted):
    with pytest.raises(InputError, match=f"--{flag}.*{wanted}") as caught:
        config.check(changed(TrainConfig(), flag, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["images", "ct"])
def test_pictures_and_slices_that_are_too_small_are_refused(preset):
    _, settings = PRESETS[preset]
    config.check(changed(settings, "data.size", 8))
    with pytest.raises(InputError, match=r"--data\.size 7 must be at least 8: pixels along a side"):
        config.check(changed(settings, "data.size", 7))


def test_validation_does_not_score_pixels_that_it_fits():
    settings = changed(PRESETS["images"][1], "validation.support", (1,))
    config.check(changed(settings, "validation.query", (2,)))
    with pytest.raises(InputError, match=r"--validation\.query 0 shares pixels with --validation\.support 1"):
        config.check(settings)


def test_query_views_do_not_matter_without_validation():
    config.check(changed(changed(TrainConfig(), "validation.query", (99,)), "validation.every", 0))


def test_what_an_older_config_lacks_is_told_and_written_with_its_default(capsys):
    whole = config.as_dict(TrainConfig())
    older = config.as_dict(TrainConfig())
    del older["outer"]["algorithm"], older["field"]["implementation"]
    assert config.as_dict(configfiles.decode(json.dumps(older), Path("config.json"))) == whole
    assert capsys.readouterr().err == (
        "warning: config.json lacks field.implementation, outer.algorithm, which are taken to be the defaults\n"
    )
    configfiles.decode(json.dumps(whole), Path("config.json"))
    assert not capsys.readouterr().err
    configfiles.decode("{}", Path("config.json"))
    assert " others, which are taken to be the defaults" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not a config.*; mend it, or move it away"),
        ("[]", "is not a config"),
        ('{"seed": "one"}', "is not a config.*seed"),
        ('{"field": {"density_activation": "gelu"}}', "is not a config.*gelu"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, wanted):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{path} {wanted}") as caught:
        configfiles.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("run", Path("b")), ("data.root", Path("b")), ("validation.every", 1), ("log-every", 1), ("checkpoint-every", 1),
     ("inner.unroll", 4), ("outer.scenes-at-once", 4), ("outer.num-steps", 9)],
)  # fmt: skip
def test_what_may_change_when_a_run_continues(flag, value):
    assert configfiles.differences(TrainConfig(), changed(TrainConfig(), flag, value)) == []


@pytest.mark.parametrize(
    ("flag", "value", "line"),
    [
        ("seed", 1, "seed: 0 -> 1"),
        ("data.class-name", "chair", "data.class_name: car -> chair"),
        ("inner.num-steps", 16, "inner.num_steps: 32 -> 16"),
        ("outer.learning-rate", 0.5, "outer.learning_rate: 0.0005 -> 0.5"),
        ("sampling.far", 5.0, "sampling.far: 6.0 -> 5.0"),
        ("outer.algorithm", "maml", "outer.algorithm: reptile -> maml"),
        ("outer.step-sizes.per-step", True, "outer.step_sizes.per_step: False -> True"),
        ("start-from", Path("runs/other"), "start_from: None -> runs/other"),
        ("pixel-centre", 0.0, "pixel_centre: 0.5 -> 0.0"),
    ],
)
def test_what_makes_another_training(flag, value, line):
    assert configfiles.differences(TrainConfig(), changed(TrainConfig(), flag, value)) == [line]


def test_the_length_of_a_decay_is_part_of_the_training():
    before = changed(TrainConfig(), "outer.schedule", "cosine")
    after = changed(before, "outer.num-steps", 9)
    assert configfiles.differences(before, after) == ["outer.num_steps: 25000 -> 9"]


# Under a gradient that stays 1, Adam's moments are 1 once unbiased, so each move is the learning rate itself.


def test_constant_rate():
    np.testing.assert_allclose(outer_steps(OuterConfig(learning_rate=0.1), [1] * 5), [-0.1] * 5, rtol=1e-4)


def test_warmup():
    moves = outer_steps(OuterConfig(learning_rate=0.1, warmup_steps=4), [1] * 7)
    np.testing.assert_allclose(moves, [0, -0.025, -0.05, -0.075, -0.1, -0.1, -0.1], rtol=1e-4)


def test_cosine():
    # Half a cosine over 4 steps: (1 + cos(pi t / 4)) / 2.
    settings = OuterConfig(learning_rate=0.1, schedule="cosine", num_steps=4)
    share = [1, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2, 0]
    np.testing.assert_allclose(outer_steps(settings, [1] * 5), -0.1 * np.array(share), rtol=1e-3, atol=1e-8)


def test_cosine_after_warmup():
    settings = OuterConfig(learning_rate=0.1, schedule="cosine", num_steps=6, warmup_steps=2)
    np.testing.assert_allclose(outer_steps(settings, [1] * 5)[:5], [0, -0.05, -0.1, -0.0853553, -0.05], rtol=1e-3)


def test_clipping_tames_an_outlier():
    # Clipped to norm 1, a gradient of 100 is a gradient of 1; a smaller one passes.
    clipped = OuterConfig(learning_rate=0.1, clip_norm=1.0)
    np.testing.assert_allclose(
        outer_steps(clipped, [1, 100, 0.5]), outer_steps(OuterConfig(learning_rate=0.1), [1, 1, 0.5])
    )
    assert outer_steps(clipped, [1, 100, 0.5]) != outer_steps(OuterConfig(learning_rate=0.1), [1, 100, 0.5])


def test_step_sizes_have_a_learning_rate_of_their_own():
    # Adam's first step is its learning rate along any gradient, whatever the gradient's size.
    settings = changed(OuterConfig(algorithm="meta-sgd", learning_rate=0.1), "step-sizes.learning-rate", 0.02)
    learned = with_step_sizes(jnp.zeros(2))
    optimiser = optimisers.outer_optimiser(settings)
    gradient = Learned(jnp.array([3.0, -3.0]), jnp.array([5.0]))
    moves, _ = optimiser.update(gradient, optimiser.init(learned), learned)
    np.testing.assert_allclose(moves.params, [-0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(moves.step_sizes, [-0.02], rtol=1e-4)


def test_other_algorithms_have_the_state_of_reptile():
    configs = [OuterConfig(algorithm=name) for name in ("reptile", "maml")]
    states = [optimisers.outer_optimiser(config).init(jnp.zeros(2)) for config in configs]
    assert jax.tree.structure(states[1]) == jax.tree.structure(states[0])


def test_inner_optimisers_by_hand():
    # Descent moves by rate times gradient; Adam's first step by the rate.
    for name, step_size, wanted in (("sgd", 0.5, -1.5), ("adam", 0.5, -0.5)):
        optimiser = optimisers.inner_optimiser(name, step_size)
        move, _ = optimiser.update(jnp.float32(3.0), optimiser.init(jnp.zeros(())))
        np.testing.assert_allclose(move, wanted, rtol=1e-4)


def test_paths_that_may_be_none_survive_the_disk(tmp_path):
    settings = changed(TrainConfig(), "start-from", Path("runs/cars"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.as_dict(settings)))
    assert configfiles.load(path) == settings


def test_adam_by_hand():
    # Moments of Kingma & Ba 2015 with betas 0.9 and 0.999 after gradients 1 and 3:
    # m = 0.1 * 0.9 + 0.1 * 3 = 0.39, unbiased by 1 - 0.81; v = 0.001 * 0.999 + 0.001 * 9 = 0.009999, by 1 - 0.998001.
    wanted = -0.1 * (0.39 / 0.19) / np.sqrt(0.009999 / 0.001999)
    np.testing.assert_allclose(outer_steps(OuterConfig(learning_rate=0.1), [1, 3]), [-0.1, wanted], rtol=1e-4)


def test_runs_of_two_kinds_differ_in_words():
    toy, ct = (PRESETS[name][1] for name in ("toy", "ct"))
    assert "kind: views -> ct" in configfiles.differences(toy, ct)
    assert any(line.startswith("data.class_name: ") for line in configfiles.differences(ct, toy))


@pytest.mark.parametrize("module", ["viewer.__main__", "mesh", "data.check", "interchange"])
def test_the_usage_names_the_command_as_it_is_called(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", ["a file", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"jaxmeta.{module}").main()
    assert f"python -m jaxmeta.{module.removesuffix('.__main__')} " in capsys.readouterr().out

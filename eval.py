"""Fits scenes never seen from a few views, from the learned and from the standard initialisation: what learning buys.

    python eval.py runs/cars

Writes results.json, results.csv and figures into the folder `eval` of the run.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmeta import checkpoints, config, devices, evaluation, figures, metalearning, results, runfiles
from jaxmeta.assembly import SceneFunctions, scene_functions
from jaxmeta.cameras import Views
from jaxmeta.config import TrainConfig
from jaxmeta.data.shapenet import Split, load_split
from jaxmeta.errors import CheckpointError, InputError, run_command
from jaxmeta.evaluation import Fit
from jaxmeta.metalearning import Params
from jaxmeta.objectives import composite_on_white


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Fit scenes never seen, from the learned and from the standard initialisation."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of train.py."""
    split: str = "test"
    """The scenes to fit: a key of the splits file."""
    num_scenes: int | None = None
    """The first so many scenes of the split; None for all."""
    support: tuple[int, ...] = (0,)
    """Views that the inner loop fits."""
    query: tuple[int, ...] = (1, 4, 7, 10, 13, 16, 19, 22)
    """Held-out views to score."""
    stages: tuple[int, ...] = (0, 1, 10, 32, 100, 1000)
    """Numbers of inner steps after which to score, increasing."""
    num_rays: int | None = None
    """Rays of each inner step; None for the number of the training."""
    step_size: float | None = None
    """Learning rate of the inner loop; None for that of the training."""
    scenes_at_once: int = 4
    """Scenes adapted side by side; more is faster on a GPU and takes more memory."""
    figure_scenes: int = 5
    """Scenes shown in the figures."""
    data_root: Path | None = None
    """Where the data lie now; None for where they lay in training."""
    seed: int = 1
    """Of the standard initialisation and of every draw."""
    out: Path | None = None
    """Folder for the results; None for RUN/eval."""


def main() -> None:
    """Evaluates as the command line says."""
    wanted = tyro.cli(EvalConfig)
    settings = config.load(wanted.run / "config.json")
    check(wanted)
    root = wanted.data_root or settings.data.root
    split = load_split(
        root,
        settings.data.class_name,
        wanted.split,
        num_views=max(*wanted.support, *wanted.query) + 1,
        num_scenes=wanted.num_scenes,
    )
    height, width = split.views.images.shape[2:4]
    functions = scene_functions(
        settings, height=height, width=width, num_rays=wanted.num_rays or settings.inner.num_rays
    )
    mesh = devices.scene_mesh()
    step, learned = load_learned(wanted.run, settings, functions, mesh)
    initialisations = {"standard": functions.init(jax.random.key(wanted.seed)), "learned": learned}
    fit_scenes = evaluation.make_fit_scenes(
        functions.loss,
        optax.sgd(wanted.step_size or settings.inner.step_size),
        functions.render_pose,
        mesh,
        stages=wanted.stages,
    )
    support = evaluation.select_views(split.views, wanted.support)
    query = evaluation.select_views(split.views, wanted.query)
    bar = tqdm(total=2 * len(split.ids), unit="scene", disable=None)
    fits = {}
    for name, params in initialisations.items():
        batches = evaluation.fit_in_batches(
            fit_scenes, params, support, query, mesh, seed=wanted.seed, batch_size=wanted.scenes_at_once
        )
        done = []
        for fit in batches:
            done.append(fit)
            bar.update(len(fit.scores.psnr))
        fits[name] = evaluation.fit_all(done)
    bar.close()
    out = wanted.out or wanted.run / "eval"
    write_results(out, wanted, settings, step, split, fits)
    write_figures(out, wanted, functions, support, query, split.ids, fits)


def load_learned(run: Path, settings: TrainConfig, functions: SceneFunctions, mesh: Mesh) -> tuple[int, Params]:
    """Returns the newest initialisation of a run, and the meta-step that it is of."""
    start = metalearning.initial_state(functions.init(jax.random.key(0)), config.outer_optimiser(settings.outer))
    with checkpoints.open_checkpoints(run) as saved:
        state = checkpoints.restore(saved, like=start, sharding=devices.replicated(mesh))
    if state is None:
        raise CheckpointError(f"{run} has no checkpoint yet; let train.py reach --checkpoint-every")
    return int(state.step), state.params


def check(wanted: EvalConfig) -> None:
    """Refuses values that cannot be meant.

    Raises:
      InputError: names the flag.
    """
    if list(wanted.stages) != sorted(set(wanted.stages)) or not wanted.stages or wanted.stages[0] < 0:
        raise InputError(f"--stages {wanted.stages} must be numbers of steps that increase from 0 or more")
    if not wanted.support or not wanted.query or min(*wanted.support, *wanted.query) < 0:
        raise InputError(f"--support {wanted.support} and --query {wanted.query} must be numbers of views, from 0")
    both = set(wanted.support) & set(wanted.query)
    if both:
        raise InputError(f"--query {wanted.query} holds the support views {sorted(both)}; they are not held out")
    for flag, value in {
        "num-rays": wanted.num_rays,
        "step-size": wanted.step_size,
        "num-scenes": wanted.num_scenes,
    }.items():
        if value is not None and not value > 0:
            raise InputError(f"--{flag} {value} must be positive")


def write_results(
    out: Path, wanted: EvalConfig, settings: TrainConfig, step: int, split: Split, fits: dict[str, Fit]
) -> None:
    """Writes results.json and results.csv, and prints the table."""
    scores = {name: fit.scores for name, fit in fits.items()}
    rows = results.records(scores, wanted.stages, split.ids, wanted.query)
    summary = results.summary(scores, wanted.stages)
    content = {
        "schema": results.SCHEMA,
        "protocol": config.as_dict(wanted),
        "training": config.as_dict(settings) | {"step": step},
        "versions": checkpoints.versions(),
        "devices": devices.describe(),
        "summary": summary,
        "views": rows,
    }
    runfiles.write_atomically(out / "results.json", runfiles.to_json(content))
    runfiles.write_atomically(out / "results.csv", results.to_csv(rows))
    print(
        f"{len(split.ids)} scenes of '{wanted.split}', {len(wanted.support)} support and {len(wanted.query)} query "
        f"views, {step} meta-steps; mean ± standard deviation over scenes"
    )
    print(results.table(summary))


def write_figures(
    out: Path,
    wanted: EvalConfig,
    functions: SceneFunctions,
    support: Views,
    query: Views,
    ids: tuple[str, ...],
    fits: dict[str, Fit],
) -> None:
    """Writes comparison.png, novel_views.png and psnr.png."""
    shown = range(min(wanted.figure_scenes, len(ids)))
    render = jax.jit(lambda params, pose, focal: functions.render_pose(params, pose, focal).rgb)

    def view(name: str, scene: int, stage: int, index: int) -> np.ndarray:
        params = jax.tree.map(lambda leaf: leaf[scene, stage], fits[name].params)
        return np.asarray(render(params, query.poses[scene, index], query.focal[scene]))

    def target(views: Views, scene: int, index: int) -> np.ndarray:
        return np.asarray(composite_on_white(views.images[scene, index]))

    last, middle = len(wanted.stages) - 1, len(wanted.query) // 2
    columns = [(name, stage) for name in fits for stage in range(len(wanted.stages))]
    figures.image_grid(
        out / "comparison.png",
        [
            [target(support, scene, 0), target(query, scene, middle)]
            + [view(name, scene, stage, middle) for name, stage in columns]
            for scene in shown
        ],
        column_titles=["support view", "target"] + [f"{name}\n{wanted.stages[stage]} steps" for name, stage in columns],
        row_titles=[ids[scene] for scene in shown],
    )
    figures.image_grid(
        out / "novel_views.png",
        [
            [picture(scene, index) for index in range(len(wanted.query))]
            for scene in shown
            for picture in (partial(target, query), lambda scene, index: view("learned", scene, last, index))
        ],
        column_titles=[f"view {index}" for index in wanted.query],
        row_titles=[title for scene in shown for title in (ids[scene], f"learned, {wanted.stages[last]} steps")],
    )
    figures.curves(
        out / "psnr.png",
        wanted.stages,
        {name: fit.scores.psnr.mean(axis=-1) for name, fit in fits.items()},
        label="PSNR of query views (dB)",
    )
    print(f"results and figures are in {out}")


if __name__ == "__main__":
    run_command(main)

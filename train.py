"""Meta-learns an initialisation over many scenes: config -> data -> state -> meta-steps -> checkpoints.

    python train.py cars --data.root DATA

The same command continues a run that is there already.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmeta import (
    checkpoints,
    comparison,
    config,
    devices,
    evaluation,
    feeding,
    interruption,
    optimisers,
    runfiles,
    starting,
    training,
)
from jaxmeta.assembly import assemble, scene_gradient
from jaxmeta.config import TrainConfig
from jaxmeta.errors import run_command
from jaxmeta.interruption import InterruptedRun
from jaxmeta.keeping import Keeper, resume
from jaxmeta.metalearning import Initialisation
from jaxmeta.presets import PRESETS
from jaxmeta.signals import Signal, Split
from jaxmeta.training import Progress, Start, TrainSteps
from jaxmeta.words import counted

MAX_BAD_STEPS = 10
"""So many meta-steps in a row in which every scene diverged end a run."""


def main() -> None:
    """Trains as the command line says."""
    settings = tyro.extras.overridable_config_cli(PRESETS)
    config.check(settings)
    together = settings.processes
    if together.join:
        devices.join_processes(together.coordinator, together.count, together.index, heartbeat=together.heartbeat)
    meta_learn(settings)


def meta_learn(settings: TrainConfig) -> None:
    """Makes a run, or continues it; eval.py trains its baselines so."""
    devices.keep_compiled()
    mesh = devices.scene_mesh()
    split = settings.signal.load("train", num_scenes=settings.signal.data.num_scenes)
    signal = assemble(settings, size=split.size, num_rays=settings.inner.num_rays)
    validate = make_validate(settings, signal, mesh) if settings.validation.every else None
    query = assemble(settings, size=split.size, num_rays=settings.inner.num_query_rays or settings.inner.num_rays)
    train_steps = training.make_train_steps(
        scene_gradient(settings, signal.loss, query.loss),
        optimisers.outer_optimiser(settings.outer),
        mesh,
        seed=settings.seed,
        num_inner_steps=settings.inner.num_steps,
        scenes_at_once=settings.outer.scenes_at_once,
    )
    runfiles.check_run(settings)
    begin = starting.beginning(settings, signal.init)
    with (
        interruption.sole_writer(settings.run),
        interruption.watchdog(settings.step_timeout) as alive,
        checkpoints.open_checkpoints(settings.run) as latest,
        checkpoints.open_checkpoints(settings.run, "best", keep=1) as best,
        interruption.stop_requests(latest) as stop_requested,
    ):
        start = resume(settings, latest, begin, split.content, devices.replicated(mesh))
        runfiles.claim_run(settings)
        about = {"config": config.as_dict(settings), "data": split.content}
        keeper = Keeper(settings.run, latest, best, about)
        train(settings, split, mesh, train_steps, start, validate, keeper, stop_requested, alive)


def train(
    settings: TrainConfig,
    split: Split,
    mesh: Mesh,
    train_steps: TrainSteps,
    start: Start,
    validate: Callable[[Initialisation], float] | None,
    keeper: Keeper,
    stop_requested: Callable[[int], int | None],
    alive: Callable[[], None],
) -> None:
    """Takes meta-steps up to the configured number, with metrics, validation and checkpoints on the way."""
    first, total = start.step, settings.outer.num_steps
    quiet = not devices.is_main_process()
    if not quiet:
        scenes = counted(len(split.ids), "scene")
        print(f"{scenes}, {devices.describe()}, meta-steps {first} to {total}, in {settings.run}")

    def validated(before: int, after: int) -> bool:
        return validate is not None and due(before, after, settings.validation.every, total)

    def saved(before: int, after: int) -> bool:
        return due(before, after, settings.checkpoint_every, total)

    chunks = feeding.chunks(
        split.scenes,
        training.plan_batches(
            settings.seed,
            first,
            total,
            steps_per_chunk=settings.log_every,
            num_scenes=len(split.ids),
            scenes_per_step=settings.outer.num_scenes,
        ),
        mesh,
        residency=settings.signal.data.residency,
    )
    with tqdm(total=total, initial=first, unit="step", disable=quiet or None) as bar:
        for done in training.take_steps(
            train_steps, start, chunks, pause=lambda *steps: validated(*steps) or saved(*steps)
        ):
            alive()
            interrupted = stop_requested(done.step) is not None
            if interrupted:  # saved first: the time that is left for the rest may be short
                keeper.keep(done.state, must=True)
            report = training.summarise(done, split.ids)
            if validate and validated(done.before, done.step):
                report["validation_psnr"] = validate(done.state.params)
                keeper.keep_if_best(done.state, report["validation_psnr"])
                alive()
            keeper.note(step=done.step, **report)
            diverged = done.bad_in_a_row >= min(MAX_BAD_STEPS, total)
            crash = runfiles.crash_report(settings, done, split.ids) if diverged else None
            stopped_by = stop_requested(done.step)
            last = done.step == total or crash is not None or stopped_by is not None
            if not interrupted and (last or saved(done.before, done.step)):
                keeper.keep(done.state, must=last)
            if not quiet:
                show(bar, done, report)
            if crash:
                raise crash
            if stopped_by is not None and done.step < total:
                raise InterruptedRun(f"stopped at step {done.step}; the same command continues", stopped_by)


def make_validate(settings: TrainConfig, signal: Signal, mesh: Mesh) -> Callable[[Initialisation], float]:
    """Returns a function that gives the mean PSNR in dB of held-out scenes after adaptation."""
    wanted = settings.validation
    split = settings.signal.load("val", num_scenes=wanted.num_scenes)
    optimiser = optimisers.inner_optimiser(settings.inner.optimiser, settings.inner.step_size)
    adapt = evaluation.make_adapt(signal.loss, optimiser, mesh, stages=[wanted.num_steps])
    score = comparison.score_function(signal, mesh)
    scenes = np.arange(len(split.ids))
    support = signal.support(split.scenes, scenes, np.tile(wanted.support, (len(scenes), 1)))
    query = signal.query(split.scenes, scenes, np.tile(wanted.query, (len(scenes), 1)))

    def validate(initialisation: Initialisation) -> float:
        batches = evaluation.fit_in_batches(
            adapt,
            score,
            initialisation,
            support,
            query,
            mesh,
            seed=settings.seed,
            batch_size=settings.outer.num_scenes,
            keep_every=0,
        )
        return float(evaluation.fit_all(batches).scores.psnr.mean())

    return validate


def due(before: int, after: int, every: int, total: int) -> bool:
    """Returns whether the steps from `before` to `after` reached a multiple of `every`, or the end."""
    return after == total or after // every > before // every


def show(bar: tqdm, done: Progress, report: dict[str, Any]) -> None:
    """Moves the progress bar, or prints a line where there is no terminal."""
    names = ("loss", "psnr", "validation_psnr", "scenes_per_second")
    told = "  ".join(f"{name} {report[name]:.4g}" for name in names if name in report)
    bar.set_postfix_str(told)
    bar.update(len(done.batches))
    if bar.disable:
        eta = tqdm.format_interval((bar.total - done.step) / len(done.batches) * done.seconds)
        print(f"step {done.step}/{bar.total}  {told}  eta {eta}", flush=True)


if __name__ == "__main__":
    run_command(main)

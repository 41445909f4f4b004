"""Meta-learns an initialisation over many scenes: config -> data -> state -> meta-steps -> checkpoints.

    python train.py cars --data.root DATA

The same command continues a run that is there already.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmeta import checkpoints, config, devices, evaluation, feeding, metalearning, runfiles, training
from jaxmeta.assembly import SceneFunctions, scene_functions
from jaxmeta.config import TrainConfig
from jaxmeta.data.splits import Split, load_split
from jaxmeta.errors import DivergedError, run_command
from jaxmeta.metalearning import MetaMetrics, MetaState, Params
from jaxmeta.presets import PRESETS
from jaxmeta.training import TrainSteps


def main() -> None:
    """Trains as the command line says."""
    settings = tyro.extras.overridable_config_cli(PRESETS)
    config.check(settings)
    mesh = devices.scene_mesh()
    split = load_scenes(settings, "train", settings.data.num_scenes)
    height, width = split.views.images.shape[2:4]
    functions = scene_functions(settings, height=height, width=width, num_rays=settings.inner.num_rays)
    validate = make_validate(settings, functions, mesh) if settings.validation.every else None
    optimiser = config.outer_optimiser(settings.outer)
    train_steps = training.make_train_steps(
        functions.loss,
        optax.sgd(settings.inner.step_size),
        optimiser,
        mesh,
        seed=settings.seed,
        num_inner_steps=settings.inner.num_steps,
        unroll=settings.inner.unroll,
    )
    runfiles.claim_run(settings)
    state = metalearning.initial_state(functions.init(jax.random.key(settings.seed)), optimiser)
    with checkpoints.open_checkpoints(settings.run) as saved:
        state = checkpoints.restore(saved, like=state, sharding=devices.replicated(mesh)) or state
        runfiles.cut_metrics(settings.run, int(state.step))
        train(settings, split, mesh, train_steps, state, validate, partial(checkpoints.save, saved))


def train(
    settings: TrainConfig,
    split: Split,
    mesh: Mesh,
    train_steps: TrainSteps,
    state: MetaState,
    validate: Callable[[Params], float] | None,
    save: Callable[[MetaState], None],
) -> None:
    """Takes meta-steps up to the configured number, with metrics, validation and checkpoints on the way."""
    first, total = int(state.step), settings.outer.num_steps
    state = jax.device_put(state, devices.replicated(mesh))
    plan = training.plan_batches(
        settings.seed,
        first,
        total,
        steps_per_chunk=settings.log_every,
        num_scenes=len(split.ids),
        scenes_per_step=settings.outer.num_scenes,
    )
    chunks = feeding.chunks(
        split.views, plan, mesh, steps_per_chunk=settings.log_every, residency=settings.data.residency
    )
    print(f"{len(split.ids)} scenes, {devices.describe()}, meta-steps {first} to {total}, in {settings.run}")
    with tqdm(total=total, initial=first, unit="step", disable=None) as bar:
        step, began = first, time.perf_counter()
        for chunk in chunks:
            advance = len(chunk.batches)
            step += advance
            state, metrics = train_steps(state, chunk.scenes, chunk.places)
            report = summarise(jax.device_get(metrics), chunk.batches, split.ids)
            seconds = time.perf_counter() - began
            report |= {"seconds": seconds, "scenes_per_second": chunk.batches.size / seconds}
            if not np.isfinite(report["loss"]):
                raise DivergedError(
                    f"every scene of the meta-steps {step - advance} to {step} of {settings.run} diverged; its saves "
                    "are sound; start another run with a lower --inner.step-size or --outer.learning-rate"
                )
            if validate and due(step, advance, settings.validation.every, total):
                report["validation_psnr"] = validate(state.params)
            runfiles.append_metrics(settings.run, step=step, **report)
            if due(step, advance, settings.checkpoint_every, total):
                save(state)
            show(bar, step, advance, report)
            began = time.perf_counter()


def load_scenes(settings: TrainConfig, name: str, num_scenes: int | None) -> Split:
    """Returns the first scenes of a split."""
    data = settings.data
    return load_split(
        data.root,
        data.class_name,
        name,
        num_views=data.num_views,
        num_scenes=num_scenes,
        layout=data.layout,
        assume_opaque=data.assume_opaque,
        verify=data.verify,
    )


def make_validate(settings: TrainConfig, functions: SceneFunctions, mesh: Mesh) -> Callable[[Params], float]:
    """Returns a function that gives the mean PSNR in dB of held-out scenes after adaptation from one view."""
    wanted = settings.validation
    split = load_scenes(settings, "val", wanted.num_scenes)
    fit_scenes = evaluation.make_fit_scenes(
        functions.loss, optax.sgd(settings.inner.step_size), functions.render_pose, mesh, stages=[wanted.num_steps]
    )
    support = evaluation.select_views(split.views, [0])
    query = evaluation.select_views(split.views, wanted.query)

    def validate(params: Params) -> float:
        batches = evaluation.fit_in_batches(
            fit_scenes, params, support, query, mesh, seed=settings.seed, batch_size=settings.outer.num_scenes
        )
        return float(evaluation.fit_all(batches).scores.psnr.mean())

    return validate


def summarise(metrics: MetaMetrics, batches: np.ndarray, ids: tuple[str, ...]) -> dict[str, Any]:
    """Returns what is logged of some meta-steps.

    Losses are before the first and before the last inner step, on the rays of that step; psnr is of the last, in dB.
    """
    num_steps, num_scenes = batches.shape
    diverged = metrics.diverged[:num_steps, :num_scenes]
    counted = ~diverged.all(axis=1)
    losses = metrics.losses[:num_steps][counted].mean(axis=0) if counted.any() else np.full(2, np.nan)
    return {
        "loss_before": float(losses[0]),
        "loss": float(losses[-1]),
        "psnr": float(-10 * np.log10(losses[-1])),
        "gradient_norm": float(metrics.gradient_norm[:num_steps].mean()),
        "diverged": [ids[scene] for scene in batches[diverged]],
    }


def due(step: int, advance: int, every: int, total: int) -> bool:
    """Returns whether the last `advance` steps reached a multiple of `every`, or the end."""
    return step == total or step // every > (step - advance) // every


def show(bar: tqdm, step: int, advance: int, report: dict[str, Any]) -> None:
    """Moves the progress bar, or prints a line where there is no terminal."""
    names = ("loss", "psnr", "validation_psnr", "scenes_per_second")
    told = "  ".join(f"{name} {report[name]:.4g}" for name in names if name in report)
    bar.set_postfix_str(told)
    bar.update(advance)
    if bar.disable:
        eta = tqdm.format_interval((bar.total - step) / advance * report["seconds"])
        print(f"step {step}/{bar.total}  {told}  eta {eta}", flush=True)


if __name__ == "__main__":
    run_command(main)

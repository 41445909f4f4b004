"""Meta-learns an initialisation over many scenes: config -> data -> state -> meta-steps -> checkpoints.

    python train.py cars --data.root DATA

The same command continues a run that is there already.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmeta import checkpoints, config, devices, evaluation, metalearning, runfiles, training
from jaxmeta.assembly import SceneFunctions, scene_functions
from jaxmeta.config import TrainConfig
from jaxmeta.data.shapenet import load_split
from jaxmeta.errors import DivergedError, run_command
from jaxmeta.metalearning import MetaMetrics, Params


def main() -> None:
    """Trains as the command line says."""
    settings = tyro.extras.overridable_config_cli(config.PRESETS)
    config.check(settings)
    mesh = devices.scene_mesh()
    data = settings.data
    split = load_split(data.root, data.class_name, "train", num_views=data.num_views, num_scenes=data.num_scenes)
    height, width = split.views.images.shape[2:4]
    functions = scene_functions(settings, height=height, width=width, num_rays=settings.inner.num_rays)
    validate = make_validate(settings, functions, mesh) if settings.validation.every else None

    inner_optimiser, outer_optimiser = optax.sgd(settings.inner.step_size), config.outer_optimiser(settings.outer)
    train_steps = training.make_train_steps(
        functions.loss,
        inner_optimiser,
        outer_optimiser,
        mesh,
        seed=settings.seed,
        num_inner_steps=settings.inner.num_steps,
        unroll=settings.inner.unroll,
    )
    runfiles.claim_run(settings)
    everywhere = devices.replicated(mesh)
    state = metalearning.initial_state(functions.init(jax.random.key(settings.seed)), outer_optimiser)
    with checkpoints.open_checkpoints(settings.run) as saved:
        state = checkpoints.restore(saved, like=state, sharding=everywhere) or jax.device_put(state, everywhere)
        runfiles.cut_metrics(settings.run, int(state.step))
        scenes = jax.device_put(split.views, everywhere)
        total, first = settings.outer.num_steps, int(state.step)
        print(f"{len(split.ids)} scenes, {devices.describe()}, meta-steps {first} to {total}, in {settings.run}")
        bar = tqdm(total=total, initial=first, unit="step", disable=None)
        for step in range(first, total, settings.log_every):
            begin = time.perf_counter()
            batches = training.scene_batches(
                settings.seed,
                step,
                min(settings.log_every, total - step),
                num_scenes=len(split.ids),
                scenes_per_step=settings.outer.num_scenes,
            )
            padded = training.pad_batches(batches, mesh, num_steps=settings.log_every)
            state, metrics = train_steps(state, scenes, padded)
            metrics = jax.tree.map(np.asarray, metrics)
            step += len(batches)
            report = summarise(metrics, batches, split.ids, seconds=time.perf_counter() - begin)
            if not np.isfinite(report["loss"]):
                raise DivergedError(
                    f"every scene diverged up to meta-step {step} of {settings.run}; its checkpoints are sound; "
                    "start another run with a lower --inner.step-size or --outer.learning-rate"
                )
            if validate and due(step, len(batches), settings.validation.every, total):
                report["validation_psnr"] = validate(state.params)
            runfiles.append_metrics(settings.run, step=step, **report)
            if due(step, len(batches), settings.checkpoint_every, total):
                checkpoints.save(saved, state)
            show(bar, step, len(batches), report)
        bar.close()


def make_validate(settings: TrainConfig, functions: SceneFunctions, mesh: Mesh) -> Callable[[Params], float]:
    """Returns a function that gives the mean PSNR in dB of held-out scenes after adaptation from one view."""
    data, wanted = settings.data, settings.validation
    split = load_split(data.root, data.class_name, "val", num_views=data.num_views, num_scenes=wanted.num_scenes)
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


def summarise(
    metrics: MetaMetrics, batches: np.ndarray, ids: tuple[str, ...], *, seconds: float
) -> dict[str, float | list[str]]:
    """Returns what is logged of some meta-steps.

    Losses are before the first and before the last inner step; psnr is that of the last, in dB.
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
        "seconds": seconds,
        "scenes_per_second": batches.size / seconds,
    }


def due(step: int, advance: int, every: int, total: int) -> bool:
    """Returns whether the last `advance` steps reached a multiple of `every`, or the end."""
    return step == total or step // every > (step - advance) // every


def show(bar: tqdm, step: int, advance: int, report: dict[str, float | list[str]]) -> None:
    """Moves the progress bar, or prints a line where there is no terminal."""
    names = ("loss", "psnr", "validation_psnr", "scenes_per_second")
    told = "  ".join(f"{name} {report[name]:.4g}" for name in names if name in report)
    bar.set_postfix_str(told)
    bar.update(advance)
    if bar.disable:
        print(f"step {step}  {told}", flush=True)


if __name__ == "__main__":
    run_command(main)

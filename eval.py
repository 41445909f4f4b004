"""Fits scenes never seen from a few views, from the learned and from the standard initialisation: what learning buys.

    python eval.py runs/cars

Writes results.json, results.csv and figures into the folder `eval` of the run.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmeta import checkpoints, config, devices, evaluation, metalearning, results, runfiles
from jaxmeta.assembly import Signal, scene_signal
from jaxmeta.config import EvalConfig, TrainConfig
from jaxmeta.data.splits import Split, load_split
from jaxmeta.errors import CheckpointError, run_command
from jaxmeta.evaluation import Fit
from jaxmeta.gallery import write_figures
from jaxmeta.metalearning import Params


def main() -> None:
    """Evaluates as the command line says."""
    wanted = tyro.cli(EvalConfig)
    settings = config.load(wanted.run / "config.json")
    config.check_eval(wanted)
    out = wanted.out or wanted.run / "eval"
    runfiles.claim_folder(out)
    root = wanted.data_root or settings.data.root
    split = load_split(
        root,
        settings.data.class_name,
        wanted.split,
        num_views=max(*wanted.support, *wanted.query) + 1,
        num_scenes=wanted.num_scenes,
        layout=settings.data.layout,
        assume_opaque=settings.data.assume_opaque,
    )
    height, width = split.views.images.shape[2:4]
    signal = scene_signal(settings, height=height, width=width, num_rays=wanted.num_rays or settings.inner.num_rays)
    mesh = devices.scene_mesh()
    step, learned = load_learned(wanted, settings, signal, mesh)
    initialisations = {"standard": signal.init(jax.random.key(wanted.seed)), "learned": learned}
    optimiser = optax.sgd(wanted.step_size or settings.inner.step_size)
    adapt = evaluation.make_adapt(signal.loss, optimiser, mesh, stages=wanted.stages)
    score = evaluation.within_memory(
        lambda rays: evaluation.make_score(partial(signal.predict, rays_per_chunk=rays), signal.target, mesh)
    )
    scenes = np.arange(len(split.ids))
    support_numbers, query_numbers = (np.tile(views, (len(scenes), 1)) for views in (wanted.support, wanted.query))
    support = signal.support(split.views, scenes, support_numbers)
    query = signal.query(split.views, scenes, query_numbers)
    bar = tqdm(total=2 * len(split.ids), unit="scene", disable=None)
    fits = {}
    for name, params in initialisations.items():
        batches = evaluation.fit_in_batches(
            adapt, score, params, support, query, mesh, seed=wanted.seed, batch_size=wanted.scenes_at_once
        )
        done = []
        for fit in batches:
            done.append(fit)
            bar.update(len(fit.scores.psnr))
        fits[name] = evaluation.fit_all(done)
    bar.close()
    write_results(out, wanted, settings, step, split, fits)
    write_figures(
        out,
        signal.predict,
        signal.target,
        signal.query(split.views, scenes, support_numbers),
        query,
        fits,
        ids=split.ids,
        query_numbers=wanted.query,
        stages=wanted.stages,
        num_scenes=wanted.figure_scenes,
    )
    print(f"results and figures are in {out}")


def load_learned(wanted: EvalConfig, settings: TrainConfig, signal: Signal, mesh: Mesh) -> tuple[int, Params]:
    """Returns the meta-step and the parameters of a run's initialisation."""
    start = metalearning.initial_state(signal.init(jax.random.key(0)), config.outer_optimiser(settings.outer))
    name = "best" if wanted.checkpoint == "best" else "checkpoints"
    with checkpoints.open_checkpoints(wanted.run, name, read_only=True) as saved:
        found = checkpoints.restore(saved, like=start, sharding=devices.replicated(mesh))
    if found is None:
        raise CheckpointError(f"{wanted.run / name} holds no checkpoint yet; let train.py go on, or run it first")
    return int(found.state.step), found.state.params


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


if __name__ == "__main__":
    run_command(main)

"""Fits scenes never seen from a few views, from the learned initialisation and from others: what learning buys.

    python eval.py runs/cars
    python eval.py runs/cars --protocol nerf-meta --baselines standard mean matched shuffled single-view joint

Writes results.json, results.csv, pictures and report.html, which holds them, into the folder `eval` of the run.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmeta import (
    baselines,
    config,
    configfiles,
    devices,
    lpips,
    optimisers,
    pictures,
    protocols,
    results,
    runfiles,
    soundness,
    tables,
    tasks,
    turntable,
)
from jaxmeta.assembly import assemble, first_initialisation
from jaxmeta.comparison import Shown, Starts, Subject, compare, num_fits
from jaxmeta.config import TrainConfig
from jaxmeta.errors import JaxmetaError, run_command
from jaxmeta.evaluation import Distance
from jaxmeta.figures import Picture
from jaxmeta.loading import imported_from, load_initialisation
from jaxmeta.metalearning import Initialisation, Learned
from jaxmeta.protocols import EvalConfig, Plan
from jaxmeta.report import write_report
from jaxmeta.results import Outcome
from jaxmeta.signals import Evaluated, Signal, Split
from jaxmeta.words import counted
from train import meta_learn


def main() -> None:
    """Evaluates as the command line says."""
    began, compiled = time.perf_counter(), devices.compilation_clock()
    wanted = tyro.cli(EvalConfig)
    settings = configfiles.load(wanted.run / "config.json")
    protocols.check(wanted, settings.signal.protocol)
    out = wanted.out or wanted.run / "eval"
    runfiles.claim_folder(out)
    settings = dataclasses.replace(settings, run=wanted.run)
    if wanted.data_root:
        settings = config.with_root(settings, wanted.data_root)
    kind = settings.signal
    num_views = kind.count_views(wanted.split, num_scenes=wanted.num_scenes)
    plan = protocols.resolve(wanted, settings.inner, num_views, kind.protocol)
    needed = tasks.views_needed(plan, num_views)
    split = kind.load(wanted.split, num_scenes=wanted.num_scenes, num_views=needed)
    signal = assemble(settings, size=split.size, num_rays=plan.num_rays)
    perceptual = perceptual_distance(wanted.lpips_weights, signal, split, plan)
    devices.keep_compiled()
    mesh = devices.scene_mesh()
    step, learned = load_initialisation(wanted.run, settings, wanted.checkpoint)
    starts = initialisations(wanted, settings, learned, mesh)
    subject = Subject(signal, split.scenes, len(split.ids), num_views)
    ready, compiled_before = time.perf_counter(), compiled()
    optimiser, seed = protocols.inner_optimiser(plan), wanted.seeds[0]
    announce(wanted, len(split.ids))
    with tqdm(total=num_fits(plan, starts, len(split.ids)), unit="fit", disable=None) as bar:
        outcomes, shown = compare(
            subject, plan, starts, mesh, num_at_once=wanted.scenes_at_once, tell=progress(bar), lpips=perceptual
        )
    about = {
        "protocol": plan._asdict(),
        "evaluation": config.as_dict(wanted),
        "training": config.as_dict(settings) | {"step": step, "imported": imported_from(wanted.run)},
        "versions": soundness.versions(),
        "devices": devices.describe(),
        "seconds": {
            "before_fitting": ready - began,
            "fitting_and_scoring": time.perf_counter() - ready,
            "of_which_compilation": compiled() - compiled_before,
        },
    }
    content = write_results(wanted, about, split.ids, plan.stages, outcomes)
    done = Evaluated(signal, split, plan.supports, plan.stages, optimiser, starts[seed], seed=seed, mesh=mesh)
    made = draw(out, settings, done, shown, num_scenes=wanted.figure_scenes) if wanted.figure_scenes else []
    curves = pictures.write_curves(out, content["summary"], kind.units[0])
    write_report(out / "report.html", content, num_scenes=len(split.ids), curves=curves, pictures=made)
    print(f"results are in {out}; open {out / 'report.html'}")
    if wanted.strict and any(row["failed"] for row in content["summary"]):
        raise JaxmetaError(tables.of_divergence(content["summary"], content["protocol"], len(split.ids), kind.units[0]))


def announce(wanted: EvalConfig, num_scenes: int) -> None:
    """Prints what is going to be fitted."""
    if num_scenes < (wanted.num_scenes or 0):
        print(f"--num-scenes {wanted.num_scenes}: the split '{wanted.split}' has {num_scenes}, all of which are fitted")
    others = len(wanted.baselines)
    starts = counted(others + 1, "initialisation") if others else "the learned initialisation alone"
    print(f"fitting {counted(num_scenes, 'scene')} from {starts}", flush=True)


def progress(bar: tqdm, *, every: float = 10.0) -> Callable[[int], None]:
    """Returns what counts fits on a bar; where there is no terminal, it prints a line every so many seconds."""
    began = told = time.monotonic()
    done = 0

    def tell(count: int) -> None:
        nonlocal done, told
        done += count
        bar.update(count)
        now = time.monotonic()
        if bar.disable and now - told >= every:
            eta = tqdm.format_interval((bar.total - done) / done * (now - began))
            print(f"fit {done}/{bar.total}  eta {eta}", flush=True)
            told = now

    return tell


def perceptual_distance(weights: Path | None, signal: Signal, split: Split, plan: Plan) -> Distance | None:
    """Returns LPIPS with the weights of a file, which can judge what is scored; None without a file."""
    if weights is None:
        return None
    distance = partial(lpips.distance, lpips.read(weights))
    query = signal.query(split.scenes, np.zeros(1, int), np.array([plan.query[:1] or (0,)]))
    lpips.check(jax.eval_shape(signal.target, jax.tree.map(lambda leaf: leaf[0, 0], query)).shape)
    return distance


def initialisations(wanted: EvalConfig, settings: TrainConfig, learned: Initialisation, mesh: Mesh) -> Starts:
    """Returns the baselines of each seed, in the order that they were asked for, and the learned initialisation.

    Where the run learned step sizes all have some, so that they share a compiled program: ones, if none were learned.
    """
    trained = {name: train_baseline(settings, name) for name in wanted.baselines if name in baselines.TRAINED}
    signal = assemble(settings, size=(1, 1), num_rays=settings.inner.num_rays)

    def training() -> Any:
        split = settings.signal.load("train", num_scenes=wanted.baseline_scenes)
        scenes = np.arange(len(split.ids))
        return signal.support(split.scenes, scenes, np.tile(settings.signal.training_views(), (len(scenes), 1)))

    compute = baselines.make_computed(
        signal,
        learned.params if isinstance(learned, Learned) else learned,
        training,
        mesh,
        optimiser=optimisers.inner_optimiser(settings.inner.optimiser, settings.inner.step_size),
        num_steps=wanted.baseline_steps,
    )

    def baseline(name: str, seed: int) -> Initialisation:
        if name not in trained:
            return first_initialisation(settings, compute(name, seed))
        # joint has one inner step, whose step sizes serve all.
        return jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), trained[name], learned)

    return {
        seed: {name: baseline(name, seed) for name in wanted.baselines} | {results.LEARNED: learned}
        for seed in wanted.seeds
    }


def train_baseline(settings: TrainConfig, name: str) -> Initialisation:
    """Returns the initialisation of a baseline that is meta-learned; a training that is done is not done again."""
    changed = baselines.trained_config(settings, name)
    print(f"baseline {name}: meta-learned in {changed.run}")
    meta_learn(changed)
    return load_initialisation(changed.run, changed)[1]


def draw(out: Path, settings: TrainConfig, done: Evaluated, shown: Shown, *, num_scenes: int) -> list[Picture]:
    """Writes the pictures of an evaluation, of so many scenes."""
    print(f"the scores are in {out}; drawing the pictures", flush=True)
    kind, signal, size = settings.signal, done.signal, turntable.film_size(*done.split.size)
    exhibition = pictures.exhibition(kind, signal, done.split, done.stages, shown)
    made = pictures.write_pictures(out, signal, exhibition, span=kind.span, num_scenes=num_scenes)
    made += kind.draw(out, done, num_scenes=num_scenes)
    film = assemble(settings, size=size, num_rays=settings.inner.num_rays).render_pose
    if film is None:
        return made
    turning = pictures.write_film(out, signal, film, exhibition, done.initialisations, done.optimiser, seed=done.seed)
    return [turning, *made]


def write_results(
    wanted: EvalConfig, about: dict[str, Any], ids: tuple[str, ...], stages: tuple[int, ...], outcomes: list[Outcome]
) -> dict[str, Any]:
    """Writes results.json and results.csv, of one evaluation alone, prints tables, returns what results.json holds."""
    rows = results.records(outcomes, stages, ids)
    summary, paired = results.summary(outcomes, stages), results.differences(outcomes, stages)
    adaptation = results.adaptation(outcomes, stages)
    parts = {"summary": summary, "differences": paired, "adaptation": adaptation, "views": rows}
    out = wanted.out or wanted.run / "eval"
    content = {"schema": results.SCHEMA} | about | parts
    pictures.remove_earlier(out)
    runfiles.write_atomically(out / "results.json", runfiles.to_json(content))
    runfiles.write_atomically(out / "results.csv", results.to_csv(rows))
    print(tables.heading(about, len(ids), outcomes))
    counts, unit = list(dict.fromkeys(row["support_views"] for row in summary)), tables.units(about["training"])[0]
    of_first = ([row for row in some if row["support_views"] == counts[0]] for some in (summary, paired))
    print(tables.of_stages(*of_first))
    if len(counts) > 1:
        print(tables.of_view_counts(summary, unit))
    if diverged := tables.of_divergence(summary, about["protocol"], len(ids), unit):
        print(f"{diverged}\n")
    if mismatch := tables.of_matching(paired):
        print(f"{mismatch}\n")
    print(tables.of_speed(adaptation, about["seconds"], unit))
    return content


if __name__ == "__main__":
    run_command(main)

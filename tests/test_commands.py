"""The commands as a user runs them, on random pictures and a tiny network."""

import csv
import json
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from commands import PROJECT, digests, ended, metrics, steps, timeless

from jaxmeta import pictures


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    ended(commands.train(folder, outer__num_steps=7), 0)
    return folder


def test_training_leaves_config_metrics_and_checkpoints(run):
    assert json.loads((run / "config.json").read_text())["field"]["width"] == 8
    # The last chunk of two steps is cut to the one that is left.
    assert [row["step"] for row in metrics(run)] == [2, 4, 6, 7]
    assert [row["step"] for row in metrics(run) if "validation_psnr" in row] == [4, 7]
    assert all(np.isfinite(row["loss"]) and row["diverged"] == [] for row in metrics(run))
    assert steps(run) == [4, 6, 7]
    best = max((row for row in metrics(run) if "validation_psnr" in row), key=lambda row: row["validation_psnr"])
    assert steps(run, "best") == [best["step"]]


def test_a_run_that_was_stopped_continues_as_if_it_had_not_been(commands, run, tmp_path):
    stopped = tmp_path / "stopped"
    ended(commands.train(stopped, outer__num_steps=4), 0)
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "loss": 0.1}\n{"step": 7, "lo\xff')
    done = commands.train(stopped, outer__num_steps=7)
    ended(done, 0)
    assert "meta-steps 4 to 7" in done.stdout
    # Validation is due at the end, which was at step 4.
    assert timeless(run) == timeless(stopped)
    assert digests(run, 7) == digests(stopped, 7)


def test_a_run_that_is_done_stays_as_it_is(commands, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = commands.train(run, "--resume", "must", outer__num_steps=7)
    ended(done, 0)
    assert "meta-steps 7 to 7" in done.stdout
    changed = {p.name for p in run.rglob("*") if p.is_file() and before.get(p) != p.read_bytes()}
    assert changed <= {"config.json"}  # which tells how it was last called


def test_evaluation_writes_table_records_and_figures(commands, run):
    before = sorted(path for path in run.rglob("*") if "eval" not in path.parts)
    done = commands.evaluate(run, "--stages", 0, 1, 3, "--figure-scenes", 1)
    ended(done, 0)
    assert "learned, PSNR dB" in done.stdout
    results = json.loads((run / "eval" / "results.json").read_text())
    assert results["training"]["step"] == 7
    with (run / "eval" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["views"]) == 2 * 1 * 2 * 3
    learned = [float(row["psnr"]) for row in rows if row["initialisation"] == "learned" and row["steps"] == "3"]
    shown = next(row for row in results["summary"] if row["initialisation"] == "learned" and row["steps"] == 3)
    assert shown["psnr_mean"] == pytest.approx(np.mean(learned))
    for name in ("comparison", "novel_views", "extremes", "geometry", "psnr"):
        picture = iio.imread(run / "eval" / f"{name}.png", plugin="pillow")
        assert picture.std() > 10
    assert iio.improps(run / "eval" / "turntable.gif", plugin="pillow").n_images == 30
    assert (run / "eval" / "report.html").read_text().count("<img") == 6
    assert {path.name for path in (run / "eval").iterdir()} <= {"results.json", "results.csv", *pictures.FILES}
    assert sorted(path for path in run.rglob("*") if "eval" not in path.parts) == before


def test_baselines_that_are_trained_are_trained_once(commands, run, tmp_path):
    whole = tmp_path / "run"
    shutil.copytree(run, whole)
    words = ["--baselines", "joint", "matched", "--baseline-steps", 2, "--baseline-scenes", 2, "--seeds", 0, 1]
    words += ["--query", 2, "--view-counts", 1, 2, "--figure-scenes", 0]
    done = commands.evaluate(whole, *words, "--out", tmp_path / "first")
    ended(done, 0)
    assert "learned - joint, PSNR dB" in done.stdout and "support views, 1 step" in done.stdout
    joint = whole / "baselines" / "joint"
    assert json.loads((joint / "config.json").read_text())["inner"]["num_steps"] == 1
    steps = 7 * json.loads((whole / "config.json").read_text())["inner"]["num_steps"]
    before = digests(joint, steps)
    done = commands.evaluate(whole, *words, "--out", tmp_path / "second")
    assert f"meta-steps {steps} to {steps}" in done.stdout and digests(joint, steps) == before
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second"))
    assert first["views"] == second["views"] and len(first["views"]) == 3 * 2 * 2 * 1 * 1 * 2
    assert first["protocol"]["supports"] == [[0], [0, 1]] and first["schema"] == 3


def test_t22_scores_that_are_not_finite_are_null_and_fail_where_that_is_wanted(commands, run, tmp_path):
    adam = ["--optimiser", "adam", "--step-size", 1e38]
    words = [run, *adam, "--stages", 0, 2, "--figure-scenes", 0, "--out", tmp_path / "out"]
    ended(
        commands.evaluate(*words, "--strict"),
        1,
        "Fits diverged: from standard in 1 of 1 scene, from learned in 1 of 1 scene",
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["psnr"] is None for row in results["views"]] == [row["steps"] == 2 for row in results["views"]]
    assert [row["failed"] for row in results["summary"]] == [0, 1, 0, 1]


def test_the_best_state_can_be_evaluated(commands, run, tmp_path):
    words = ["--checkpoint", "best", "--baselines", "--num-scenes", 9]
    done = commands.evaluate(run, *words, "--out", tmp_path / "best")
    ended(done, 0)
    assert "--num-scenes 9: the split 'test' has 1, all of which are fitted\n" in done.stdout
    assert "fitting 1 scene from the learned initialisation alone\n" in done.stdout
    step = json.loads((tmp_path / "best" / "results.json").read_text())["training"]["step"]
    assert [step] == steps(run, "best")


@pytest.fixture(scope="module")
def meta_sgd(commands, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "meta-sgd"
    ended(commands.train(folder, "--outer.step-sizes.per-step", **META_SGD, outer__num_steps=4), 0)
    return folder


META_SGD = {"outer__algorithm": "meta-sgd", "inner__optimiser": "adam", "inner__step_size": 0.01}


def test_learned_step_sizes_are_kept_continued_and_evaluated(commands, meta_sgd, tmp_path):
    stopped = tmp_path / "stopped"
    for num_steps in (2, 4):
        ended(commands.train(stopped, "--outer.step-sizes.per-step", **META_SGD, outer__num_steps=num_steps), 0)
    assert digests(stopped, 4) == digests(meta_sgd, 4)
    assert "params/step_sizes/params/Dense_0/kernel" in digests(meta_sgd, 4)
    done = commands.evaluate(meta_sgd, "--out", tmp_path / "eval")
    ended(done, 0)
    assert " a step; what is meta-learned brings its own factors of the learning rate" in done.stdout
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {row["initialisation"] for row in results["summary"]} == {"standard", "learned"}


def test_a_training_may_start_from_another(commands, run, meta_sgd, tmp_path):
    # With a learning rate of next to nothing, MAML ends where it began: at the network of the other run.
    still = {"outer__algorithm": "maml", "outer__learning_rate": 1e-30, "outer__num_steps": 2}
    ended(commands.train(tmp_path / "a", "--start-from", run, **still), 0)
    learned = {name: digest for name, digest in digests(run, 7).items() if name.startswith("params/")}
    assert learned.items() <= digests(tmp_path / "a", 2).items()
    other = commands.train(tmp_path / "b", "--start-from", run, field__width=9)
    ended(other, 2, f"--start-from {run} holds another network than this run's (field.width: 8 -> 9)")
    ended(commands.train(tmp_path / "b", "--start-from", "nowhere"), 2, "--start-from nowhere is not there; give")
    assert not (tmp_path / "b").exists()


BAD_USE = {
    "no data": ("train.py", ["cars", "--data.root", "nowhere"], "nowhere holds no data of class 'car'"),
    "count of zero": ("train.py", ["toy", "--inner.num-rays", "0"], "--inner.num-rays 0 must be positive"),
    "far before near": ("train.py", ["toy", "--sampling.far", "1"], "--sampling.far 1.0 must exceed --sampling.near"),
    "no such run": ("eval.py", ["nowhere"], "nowhere/config.json cannot be read"),
}


@pytest.mark.parametrize(("script", "arguments", "message"), BAD_USE.values(), ids=BAD_USE.keys())
def test_bad_use_is_told_in_one_line(commands, script, arguments, message):
    done = commands.run([str(PROJECT / script), *arguments])
    ended(done, 2, message)
    assert done.stderr.count("\n") == 1
    assert not Path("nowhere").exists()


def test_query_views_must_be_held_out(commands, run):
    ended(commands.evaluate(run, "--support", 0, "--query", 0, 1), 2, "holds the support views [0]")

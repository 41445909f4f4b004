"""The commands as a user runs them, on random pictures and a tiny network."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.shapenet import write_scene, write_splits

PROJECT = Path(__file__).parents[1]
TINY = {
    "data.class-name": "cube",
    "data.num-views": 3,
    "field.width": 8,
    "field.depth": 1,
    "field.num-frequencies": 2,
    "sampling.num-samples": 4,
    "inner.num-steps": 2,
    "inner.num-rays": 4,
    "outer.num-scenes": 2,
    "outer.schedule": "constant",
    "validation.num-steps": 1,
    "validation.query": 1,
    "validation.every": 4,
    "checkpoint-every": 2,
    "log-every": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data with späces")
    rng = np.random.default_rng(0)
    for scene in range(5):
        images = rng.integers(0, 256, (3, 12, 12, 4), dtype=np.uint8)
        poses = np.stack([orbit_pose(view, 0.5, 4.0) for view in range(3)])
        write_scene(root / "cube" / f"cube{scene}", images, poses, 0.7)
    write_splits(root, "cube", {"train": ["cube0", "cube1", "cube2"], "val": ["cube3"], "test": ["cube4"]})
    return root


def command(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def train(data: Path, run: Path, **flags: object) -> subprocess.CompletedProcess[str]:
    settings = TINY | {"data.root": data, "run": run} | flags
    return command("train.py", "toy", *(word for name, value in settings.items() for word in (f"--{name}", value)))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = train(data, folder, **{"outer.num-steps": 7})
    assert done.returncode == 0, done.stderr
    return folder


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_leaves_config_metrics_and_checkpoints(run):
    assert json.loads((run / "config.json").read_text())["field"]["width"] == 8
    # The last chunk of two steps is cut to the one that is left.
    assert [row["step"] for row in metrics(run)] == [2, 4, 6, 7]
    assert [row["step"] for row in metrics(run) if "validation_psnr" in row] == [4, 7]
    assert all(np.isfinite(row["loss"]) and row["diverged"] == [] for row in metrics(run))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6", "7"]


def test_a_run_that_was_stopped_continues_as_if_it_had_not_been(data, run, tmp_path):
    stopped = tmp_path / "stopped"
    assert train(data, stopped, **{"outer.num-steps": 4}).returncode == 0
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.1}\n{"step": 7, "lo')
    done = train(data, stopped, **{"outer.num-steps": 7})
    assert done.returncode == 0, done.stderr
    assert "meta-steps 4 to 7" in done.stdout
    timeless = [[{k: v for k, v in row.items() if "second" not in k} for row in metrics(r)] for r in (run, stopped)]
    assert timeless[0] == timeless[1]
    digests = [json.loads((r / "checkpoints/7/meta/metadata").read_text())["digests"] for r in (run, stopped)]
    assert digests[0] == digests[1]


def test_another_training_is_refused_the_folder(data, run):
    done = train(data, run, **{"outer.num-steps": 7, "inner.step-size": 0.1})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "inner.step_size: 1.0 -> 0.1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_evaluation_writes_table_records_and_figures(data, run, tmp_path):
    done = command("eval.py", run, "--stages", 0, 1, 3, "--query", 1, 2, "--data-root", data)
    assert done.returncode == 0, done.stderr
    assert "learned, PSNR dB" in done.stdout
    results = json.loads((run / "eval" / "results.json").read_text())
    assert results["training"]["step"] == 7
    with (run / "eval" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["views"]) == 2 * 1 * 2 * 3
    learned = [float(row["psnr"]) for row in rows if row["initialisation"] == "learned" and row["steps"] == "3"]
    shown = next(row for row in results["summary"] if row["initialisation"] == "learned" and row["steps"] == 3)
    assert shown["psnr_mean"] == pytest.approx(np.mean(learned))
    for name in ("comparison", "novel_views", "psnr"):
        picture = iio.imread(run / "eval" / f"{name}.png", plugin="pillow")
        assert picture.std() > 10


BAD_USE = {
    "no data": ("train.py", ["cars", "--data.root", "nowhere"], "nowhere/car_splits.json cannot be read"),
    "count of zero": ("train.py", ["toy", "--inner.num-rays", "0"], "--inner.num-rays 0 must be positive"),
    "far before near": ("train.py", ["toy", "--sampling.far", "1"], "--sampling.far 1.0 must exceed --sampling.near"),
    "no such run": ("eval.py", ["nowhere"], "nowhere/config.json cannot be read"),
}


@pytest.mark.parametrize(("script", "arguments", "message"), BAD_USE.values(), ids=BAD_USE.keys())
def test_bad_use_is_told_in_one_line(script, arguments, message):
    done = command(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_query_views_must_be_held_out(run):
    done = command("eval.py", run, "--support", 0, "--query", 0, 1)
    assert done.returncode == 2
    assert "holds the support views [0]" in done.stderr

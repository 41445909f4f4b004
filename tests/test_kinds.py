"""Kinds of signal through the commands: pictures, slices, and the new one that the README makes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

import eval as evaluate
import train
from jaxmeta import pictures

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_command(tmp_path_factory):
    """Runs a command of a checkout with a compilation cache that all share."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(*words: object, checkout: Path = PROJECT) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env=environment | {"PYTHONPATH": str(checkout)},
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def scores(run: Path) -> dict[tuple[str, int, int], float]:
    """The mean PSNR, by initialisation, number of support views and steps."""
    summary = json.loads((run / "eval" / "results.json").read_text())["summary"]
    return {(row["initialisation"], row["support_views"], row["steps"]): row["psnr_mean"] for row in summary}


SMALL = {
    "images": (
        "--data.size 8 --data.num-scenes 4 --field.width 32 --field.depth 2 --field.w0 30 --outer.num-steps 60"
        " --outer.learning-rate 2e-3 --validation.every 60 --validation.num-scenes 4 --log-every 60",
        "--support 1 --query 2 --num-scenes 4 --figure-scenes 2 --stages 0 5",
        "comparison.png",
    ),
    "ct": (
        "--data.size 12 --data.num-views 8 --data.num-scenes 4 --field.width 16 --field.depth 1"
        " --field.num-frequencies 16 --field.frequency-scale 6 --inner.step-size 2 --inner.num-rays 4"
        " --outer.num-steps 40 --outer.learning-rate 2e-2 --validation.support 0 4 --validation.num-steps 2"
        " --validation.every 40 --validation.num-scenes 4 --log-every 40",
        "--view-counts 1 4 --num-scenes 4 --figure-scenes 2 --stages 0 5",
        "slices.png",
    ),
}


@pytest.mark.parametrize("preset", SMALL)
def test_a_learned_start_is_better(monkeypatch, capsys, tmp_path, preset):
    """Trains and evaluates in this process; the commands themselves are tested below."""
    training, evaluation, figure = SMALL[preset]
    monkeypatch.setattr(sys, "argv", ["train.py", preset, "--run", str(tmp_path / "run"), *training.split()])
    train.main()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation_psnr"] > 10
    monkeypatch.setattr(sys, "argv", ["eval.py", str(tmp_path / "run"), *evaluation.split()])
    evaluate.main()
    assert "learned, PSNR dB" in capsys.readouterr().out
    found = scores(tmp_path / "run")
    for views in {views for _, views, _ in found}:
        assert found["learned", views, 5] > found["standard", views, 5] + 0.5
    assert iio.imread(tmp_path / "run" / "eval" / figure, plugin="pillow").std() > 10
    assert {path.name for path in (tmp_path / "run" / "eval").iterdir()} <= {
        "results.json", "results.csv", *pictures.FILES
    }  # fmt: skip


def test_a_new_kind_is_a_file_a_word_and_a_preset(run_command, tmp_path):
    """Does to a copy of the project what the README says."""
    for name in ("jaxmeta", "train.py", "eval.py"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, tmp_path / name)
    kind, preset = re.findall(
        r"```python\n(.*?)```", (PROJECT / "README.md").read_text().split("### A new kind")[1], re.S
    )[:2]
    (tmp_path / "jaxmeta" / "kinds" / "sounds.py").write_text(kind)
    assert len([line for line in kind.splitlines() if line and "import" not in line]) <= 30
    kinds = tmp_path / "jaxmeta" / "kinds" / "__init__.py"
    union = "ViewsConfig | ImagesConfig | CTConfig"
    assert kinds.read_text().count(union) == 1
    kinds.write_text(
        kinds.read_text()
        .replace("\nSignal", "from jaxmeta.kinds.sounds import SoundsConfig\n\nSignal", 1)
        .replace(union, f"{union} | SoundsConfig")
    )
    with (tmp_path / "jaxmeta" / "presets.py").open("a") as file:
        file.write(f"\nfrom jaxmeta.kinds.sounds import SoundsConfig\n\n{preset}")
    run_command("train.py", "sounds", "--log-every", 100, checkout=tmp_path)
    run_command("eval.py", "runs/sounds", "--num-scenes", 4, "--stages", 0, 3, checkout=tmp_path)
    found = scores(tmp_path / "runs" / "sounds")
    assert found["learned", 1, 3] > found["standard", 1, 3] + 3
    assert json.loads((tmp_path / "runs/sounds/config.json").read_text())["kind"] == "sounds"
    assert np.isfinite(list(found.values())).all()

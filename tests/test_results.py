"""The table and the records of an evaluation, and the files that a run leaves."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from jaxmeta import config, results, runfiles
from jaxmeta.config import DataConfig, TrainConfig
from jaxmeta.errors import InputError
from jaxmeta.evaluation import Scores

STAGES, IDS, QUERY = (0, 10), ("a", "b", "c"), (4, 7)
# Scenes x stages x views. At stage 10 the scenes' means over their views are 20, 21 and 25.
PSNR = np.array([[[1, 3], [19, 21]], [[2, 2], [20, 22]], [[3, 1], [25, 25]]], np.float32)
SCORES = {"standard": Scores(PSNR, PSNR / 100), "learned": Scores(PSNR + 5, PSNR / 50)}


def test_summary_by_hand():
    rows = results.summary(SCORES, STAGES)
    assert [(row["initialisation"], row["steps"]) for row in rows] == [
        ("standard", 0), ("standard", 10), ("learned", 0), ("learned", 10)
    ]  # fmt: skip
    assert rows[0]["psnr_mean"] == 2 and rows[0]["psnr_std"] == 0  # between scenes: each has the mean 2
    # The mean of 20, 21, 25 is 22, and the mean square about it (4 + 1 + 9) / 3.
    assert rows[1]["psnr_mean"] == 22
    np.testing.assert_allclose(rows[1]["psnr_std"], np.sqrt(14 / 3), rtol=1e-6)
    assert rows[3]["psnr_mean"] == 27
    np.testing.assert_allclose(rows[3]["ssim_mean"], 0.44, rtol=1e-6)


def test_records_name_what_each_number_is_of():
    rows = results.records(SCORES, STAGES, IDS, QUERY)
    assert len(rows) == 2 * 3 * 2 * 2
    of_place = {(r["initialisation"], r["scene"], r["view"], r["steps"]): r for r in rows}
    assert of_place["standard", "b", 7, 10]["psnr"] == 22
    assert of_place["learned", "c", 4, 0]["psnr"] == 8
    np.testing.assert_allclose(of_place["learned", "a", 4, 10]["ssim"], 0.38, rtol=1e-6)


def test_csv_can_be_read_back():
    rows = results.records(SCORES, STAGES, IDS, QUERY)
    read = list(csv.DictReader(io.StringIO(results.to_csv(rows))))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == read


def test_table_shows_every_summary():
    lines = results.table(results.summary(SCORES, STAGES)).splitlines()
    assert lines[0].split() == ["inner", "steps", "0", "10"]
    assert [line.split(",")[0] for line in lines[1:]] == ["standard", "learned"] * 2
    assert lines[1].split()[-3:] == ["22.00", "±", "2.16"]
    assert len({len(line) for line in lines}) == 1


def test_json_is_strict():
    text = runfiles.to_json({"a": float("nan"), "b": [1.5, float("inf")], "c": ("x", None)})
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": ["x", None]}
    assert "NaN" not in text and "Infinity" not in text


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    runfiles.write_atomically(path, "one")
    runfiles.write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_metrics_of_steps_that_are_run_again_go(tmp_path):
    for step in (10, 20, 30):
        runfiles.append_metrics(tmp_path, step=step, loss=float("nan") if step == 20 else 0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # as a power cut leaves it
    runfiles.cut_metrics(tmp_path, 20)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": None}]
    runfiles.cut_metrics(tmp_path / "nothing", 0)  # a new run has none


def test_a_run_belongs_to_one_training(tmp_path):
    settings = TrainConfig(run=tmp_path / "run", data=DataConfig(root=tmp_path))
    runfiles.claim_run(settings)
    assert config.load(settings.run / "config.json") == settings
    runfiles.claim_run(dataclasses.replace(settings, log_every=7))  # may change, and is kept
    assert config.load(settings.run / "config.json").log_every == 7
    with pytest.raises(InputError, match="seed: 0 -> 3"):
        runfiles.claim_run(dataclasses.replace(settings, seed=3))
    assert config.load(settings.run / "config.json").seed == 0


def test_a_run_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--run .*file/run cannot be written"):
        runfiles.claim_run(TrainConfig(run=tmp_path / "file" / "run"))

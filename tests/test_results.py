"""The table and the records of an evaluation, and the files that a run leaves."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from jaxmeta import configfiles, results, runfiles, tables
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError
from jaxmeta.evaluation import Scores
from jaxmeta.kinds.views import DataConfig, ViewsConfig
from jaxmeta.results import Outcome

STAGES, IDS, QUERY = (0, 10), ("a", "b", "c"), np.array([[4, 7]] * 3)
# Scenes x stages x views. At stage 10 the scenes' means over their views are 20, 21 and 25.
PSNR = np.array([[[1, 3], [19, 21]], [[2, 2], [20, 22]], [[3, 1], [25, 25]]], np.float32)


def outcome(name: str, more: object = 0, *, seed: int = 1, num_support: int = 1) -> Outcome:
    psnr = PSNR + np.asarray(more, np.float32)
    support = np.broadcast_to(np.arange(num_support), (*psnr[:, 0].shape, num_support))
    return Outcome(name, seed, Scores(psnr, psnr / 100), support, QUERY, seconds=float(seed))


# Over the learned one, by scene, at stage 10: 5, 6 and 10 dB.
GAIN = np.array([5, 6, 10])[:, None, None]
BOTH = [outcome("standard"), outcome("learned", GAIN)]


def test_summary_by_hand():
    rows = results.summary(BOTH, STAGES)
    assert [(row["initialisation"], row["steps"]) for row in rows] == [
        ("standard", 0), ("standard", 10), ("learned", 0), ("learned", 10)
    ]  # fmt: skip
    assert rows[0]["psnr_mean"] == 2 and rows[0]["psnr_std"] == 0  # between scenes: each has the mean 2
    # The mean of 20, 21, 25 is 22, and the squares about it (4 + 1 + 9) / 2.
    assert rows[1]["psnr_mean"] == 22 and rows[1]["failed"] == 0
    np.testing.assert_allclose(rows[1]["psnr_std"], np.sqrt(7), rtol=1e-6)
    np.testing.assert_allclose(rows[1]["psnr_high"] - 22, 4.3027 * np.sqrt(7 / 3), rtol=1e-4)
    np.testing.assert_allclose(rows[3]["ssim_mean"], 0.29, rtol=1e-6)
    assert np.isnan(rows[1]["psnr_seed_std"])


def test_differences_are_paired():
    # 5, 6, 10: mean 7, squares about it 4 + 1 + 9, so that it spreads less than either initialisation.
    rows = results.differences(BOTH, STAGES)
    assert [(row["minuend"], row["subtrahend"], row["steps"]) for row in rows] == [
        ("learned", "standard", 0), ("learned", "standard", 10)
    ]  # fmt: skip
    assert rows[1]["psnr_mean"] == 7
    np.testing.assert_allclose(rows[1]["psnr_std"], np.sqrt(7), rtol=1e-6)
    np.testing.assert_allclose(rows[1]["ssim_low"], 0.07 - 0.043027 * np.sqrt(7 / 3), atol=1e-5)


def test_seeds_are_averaged_within_a_scene():
    rows = results.summary([outcome("learned", seed=1), outcome("learned", 2, seed=2)], STAGES)
    assert len(rows) == 2 and rows[1]["psnr_mean"] == 23
    np.testing.assert_allclose(rows[1]["psnr_std"], np.sqrt(7), rtol=1e-6)  # of scenes, as for one seed
    np.testing.assert_allclose(rows[1]["psnr_seed_std"], np.sqrt(2), rtol=1e-6)  # of 22 and 24


def test_numbers_of_views_are_kept_apart():
    rows = results.summary([outcome("learned"), outcome("learned", 1, num_support=5)], STAGES)
    assert [(row["support_views"], row["psnr_mean"]) for row in rows] == [(1, 2), (1, 22), (5, 3), (5, 23)]
    paired = results.differences(
        [*BOTH, outcome("standard", 3, num_support=2), outcome("learned", 4, num_support=2)], STAGES
    )
    assert [(row["support_views"], row["psnr_mean"]) for row in paired] == [(1, 7), (1, 7), (2, 1), (2, 1)]


def test_a_scene_that_failed_is_counted_and_left_out():
    broken = outcome("learned", np.array([[[0, 0], [0, 0]], [[0, 0], [np.nan, 0]], [[0, 0], [0, 0]]]))
    rows = results.summary([outcome("standard"), broken], STAGES)
    assert [row["failed"] for row in rows] == [0, 0, 0, 1]
    assert rows[3]["psnr_mean"] == 22.5  # of 20 and 25
    assert results.differences([outcome("standard"), broken], STAGES)[1]["psnr_mean"] == 0
    read = list(csv.DictReader(io.StringIO(results.to_csv(results.records([broken], STAGES, IDS)))))
    assert [row["psnr"] for row in read if row["scene"] == "b"] == ["2.0", "2.0", "", "22.0"]


def test_adaptation_by_hand():
    (row,) = results.adaptation([outcome("learned", seed=1), outcome("learned", seed=3)], STAGES)
    assert row["seconds_per_adaptation"] == 2 and row["steps_until_near"] == 10


def test_records_name_what_each_number_is_of():
    rows = results.records([*BOTH, outcome("learned", 7, seed=2)], STAGES, IDS)
    assert len(rows) == 3 * 3 * 2 * 2
    of_place = {(r["initialisation"], r["seed"], r["scene"], r["view"], r["steps"]): r for r in rows}
    assert of_place["standard", 1, "b", 7, 10]["psnr"] == 22
    assert of_place["learned", 1, "c", 4, 0]["psnr"] == 13
    np.testing.assert_allclose(of_place["learned", 2, "a", 4, 10]["ssim"], 0.26, rtol=1e-6)


def test_csv_can_be_read_back():
    rows = results.records([*BOTH, outcome("learned", num_support=3)], STAGES, IDS)
    read = list(csv.DictReader(io.StringIO(results.to_csv(rows))))
    for row, found in zip(rows, read, strict=True):
        assert [int(view) for view in found.pop("support").split()] == row.pop("support")
        assert {name: str(value) for name, value in row.items()} == found


def test_tables_show_every_estimate():
    text = tables.of_stages(results.summary(BOTH, STAGES), results.differences(BOTH, STAGES))
    lines = text.splitlines()
    assert lines[0].split() == ["inner", "steps", "0", "10"]
    labels = [line.split("  ")[0] for line in lines[1::2]]
    assert labels == [
        "standard, PSNR dB", "learned, PSNR dB", "learned - standard, PSNR dB", "standard, SSIM", "learned, SSIM"
    ]  # fmt: skip
    assert lines[1].endswith("22.00 ± 2.65") and lines[2].endswith("15.43 to 28.57")
    assert lines[5].endswith("+7.00 ± 2.65") and lines[6].endswith("+0.43 to +13.57")
    assert len({len(line) for line in lines}) == 1


def test_tables_of_one_scene_and_of_no_ssim():
    one = Outcome("learned", 1, Scores(PSNR[:1], PSNR[:1] * np.nan), np.zeros((1, 2, 1), int), QUERY[:1], 1.0)
    lines = tables.of_stages(results.summary([one], STAGES), []).splitlines()
    assert len(lines) == 2 and lines[1].split() == ["learned,", "PSNR", "dB", "2.00", "20.00"]


def test_fits_that_diverged_are_told_with_what_to_do():
    scores = np.array([[[0, 0], [0, 0]], [[0, 0], [np.nan, 0]], [[0, 0], [0, 0]]])
    one, all_of_them = outcome("learned", scores), outcome("standard", scores[1:2])
    rows = results.summary([all_of_them, one], STAGES)
    told = tables.of_divergence(rows, {"step_size": 0.5}, 3, "view")
    assert told.startswith("Fits diverged: from standard in 3 of 3 scenes, from learned in 1 of 3 scenes.")
    assert told.endswith("--step-size below 0.5.")
    lines = tables.of_stages(rows, results.differences([all_of_them, one], STAGES)).splitlines()
    assert [line.split()[-1] for line in lines[1:6:2]] == ["diverged", "3.54", "diverged"]
    several = results.summary([outcome("learned"), outcome("learned", scores, num_support=5)], STAGES)
    assert "from learned with 5 views in 1 of 3 scenes." in tables.of_divergence(several, {"step_size": 1}, 3, "view")
    assert tables.of_divergence(several[:2], {"step_size": 1}, 3, "view") == ""


def test_a_matched_baseline_that_does_not_match_is_told():
    def told(psnr):
        return tables.of_matching(results.differences([outcome("matched", psnr), outcome("learned", PSNR)], STAGES))

    assert told(PSNR + 0.9) == told(PSNR - 0.9) == ""
    assert told(PSNR - 2).startswith("The matched baseline does not match: at step 0 it is 2.0 dB below learned;")
    assert "1.5 dB above learned; give more --baseline-steps" in told(PSNR + 1.5)
    assert tables.of_matching(results.differences(BOTH, STAGES)) == ""


def test_table_of_view_counts():
    rows = results.summary([outcome("learned"), outcome("learned", 1, num_support=5)], STAGES)
    lines = tables.of_view_counts(rows, "view").splitlines()
    assert lines[0].split() == ["support", "views,", "10", "steps", "1", "5"]
    assert lines[1].split()[3::3] == ["22.00", "23.00"]


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
    assert lines == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": None, "nonfinite": True}]
    runfiles.cut_metrics(tmp_path / "nothing", 0)  # a new run has none


def test_a_run_belongs_to_one_training(tmp_path):
    settings = TrainConfig(run=tmp_path / "run", signal=ViewsConfig(data=DataConfig(root=tmp_path)))
    runfiles.claim_run(settings)
    assert configfiles.load(settings.run / "config.json") == settings
    runfiles.claim_run(dataclasses.replace(settings, log_every=7))  # may change, and is kept
    assert configfiles.load(settings.run / "config.json").log_every == 7
    with pytest.raises(InputError, match="seed: 0 -> 3"):
        runfiles.claim_run(dataclasses.replace(settings, seed=3))
    assert configfiles.load(settings.run / "config.json").seed == 0


def test_a_run_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--run .*file/run cannot be written"):
        runfiles.claim_run(TrainConfig(run=tmp_path / "file" / "run"))

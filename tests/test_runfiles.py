"""The files that a run leaves: whole or not there, strict, and of one training."""

import dataclasses
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from jaxmeta import configfiles, runfiles
from jaxmeta.config import InnerConfig, OuterConfig, TrainConfig
from jaxmeta.errors import InputError, StorageError
from jaxmeta.kinds.views import DataConfig, ViewsConfig
from jaxmeta.training import Progress


@pytest.fixture
def settings(tmp_path) -> TrainConfig:
    return TrainConfig(run=tmp_path / "run", signal=ViewsConfig(data=DataConfig(root=tmp_path / "pictures")))


@contextmanager
def disk_of_100_bytes() -> Iterator[None]:
    """No file of this process grows beyond that."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_t18_numbers_that_are_not_finite_are_null(tmp_path):
    runfiles.append_metrics(tmp_path, step=1, loss=float("nan"), psnr=float("-inf"), diverged=["a"])
    assert rows(tmp_path) == [{"step": 1, "loss": None, "psnr": None, "diverged": ["a"], "nonfinite": True}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


TORN = [
    b'{"step": 4, "lo', b'{"step": 4}\xff\xfe', b"\0\0\0\0", b'{"step": "four"}', b'{"step": null}', b"[4]", b"4", b"{}"
]  # fmt: skip


@pytest.mark.parametrize("torn", TORN)
def test_t18_a_line_that_is_not_whole_goes(tmp_path, torn):
    runfiles.append_metrics(tmp_path, step=2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    runfiles.cut_metrics(tmp_path, 4)
    runfiles.append_metrics(tmp_path, step=6)
    assert rows(tmp_path) == [{"step": 2}, {"step": 6}]


def test_the_lines_after_a_step_go(tmp_path):
    runfiles.cut_metrics(tmp_path, 0)  # a new run has none
    assert not list(tmp_path.iterdir())
    for step in (2, 4, 6):
        runfiles.append_metrics(tmp_path, step=step)
    runfiles.cut_metrics(tmp_path, 4)
    assert rows(tmp_path) == [{"step": 2}, {"step": 4}]


def test_t10_a_line_that_cannot_be_written_leaves_no_part(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"metrics.jsonl could not be written \(No space left on device\)") as caught:
        runfiles.append_metrics(tmp_path, step=2)
    assert caught.value.exit_code == 6


def test_t10_a_line_that_is_cut_short_is_taken_back(tmp_path):
    with disk_of_100_bytes():
        runfiles.append_metrics(tmp_path, step=2)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with pytest.raises(StorageError, match="free some space"):
            runfiles.append_metrics(tmp_path, step=4, note="x" * 200)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    runfiles.append_metrics(tmp_path, step=4)
    assert rows(tmp_path) == [{"step": 2}, {"step": 4}]


def test_t10_a_file_that_cannot_be_replaced_stays(tmp_path):
    runfiles.write_atomically(tmp_path / "a.json", "whole")
    with disk_of_100_bytes(), pytest.raises(OSError, match="File too large"):
        runfiles.write_atomically(tmp_path / "a.json", "x" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "whole"


def test_t12_another_training_is_refused_field_by_field(settings):
    runfiles.claim_run(settings)
    before = (settings.run / "config.json").read_bytes()
    other = dataclasses.replace(settings, seed=3, inner=InnerConfig(step_size=0.25))
    for refuse in (runfiles.check_run, runfiles.claim_run):
        with pytest.raises(InputError, match=r"seed: 0 -> 3; inner.step_size: 0.5 -> 0.25\); give the old settings"):
            refuse(other)
    assert (settings.run / "config.json").read_bytes() == before


FREE = {
    "debug": True,
    "resume": "must",
    "step_timeout": 9.0,
    "log_every": 7,
    "outer": OuterConfig(num_steps=9),
    "run": Path("elsewhere"),
}


@pytest.mark.parametrize("name", FREE)
def test_t12_how_it_runs_may_change(settings, name):
    assert configfiles.differences(settings, dataclasses.replace(settings, **{name: FREE[name]})) == []


def test_checking_a_run_writes_nothing(settings):
    runfiles.check_run(settings)
    assert not settings.run.exists()


def test_t12_a_config_that_is_none_is_told(settings):
    settings.run.mkdir()
    (settings.run / "config.json").write_text('{"seed": 0, "inn')
    with pytest.raises(InputError, match=r"config.json is not a config of this version"):
        runfiles.check_run(settings)


@pytest.mark.parametrize("place", ["file/results", "/proc/nowhere/results"])
def test_t11_a_folder_for_results_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"results cannot be written: .*; give another folder"):
        runfiles.claim_folder(tmp_path / place)
    runfiles.claim_folder(tmp_path / "new" / "results")
    assert list((tmp_path / "new" / "results").iterdir()) == []


def test_t2_the_crash_report_says_when_and_with_which_scenes(settings):
    done = Progress(
        state=None, step=14, batches=np.array([[0, 2], [1, 0]]), losses=np.zeros((2, 1)), gradient_norm=np.zeros(2),
        diverged=np.ones((2, 2), bool), bad_in_a_row=10, seconds=1.0,
    )  # fmt: skip
    error = runfiles.crash_report(settings, done, ("a", "b", "c"))
    assert error.exit_code == 4
    assert "every scene diverged in the last 10 meta-steps, up to 14" in str(error)
    assert "--inner.step-size" in str(error) and str(settings.run / "crash" / "14.json") in str(error)
    report = json.loads((settings.run / "crash" / "14.json").read_text())
    assert report["last_good_step"] == 4
    assert report["scenes"] == [["a", "c"], ["b", "a"]]
    assert report["config"]["inner"]["step_size"] == 0.5

"""Disks that are full and folders that cannot be written: rows T10 and T11 of the table of faults."""

import shutil
from pathlib import Path

import pytest
from commands import PATIENCE, STEPS, digests, ended, steps, timeless

pytestmark = pytest.mark.slow


# Lines of metrics fit on the disk, arrays do not.
ONLY_SMALL_FILES = "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))"


WIDE = {"field__width": 48}


@pytest.fixture(scope="module")
def wide(commands, tmp_path_factory) -> Path:
    """Its arrays take more than 4000 bytes."""
    run = tmp_path_factory.mktemp("wide") / "run"
    ended(commands.train(run, **STEPS, **WIDE), 0)
    return run


@pytest.fixture(scope="module")
def halfway_wide(commands, wide, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("halfway_wide") / "run"
    ended(commands.train(run, outer__num_steps=4, **WIDE), 0)
    return run


@pytest.fixture
def half_wide(halfway_wide, tmp_path) -> Path:
    return Path(shutil.copytree(halfway_wide, tmp_path / "half"))


def test_t10_disk_full_until_the_end(commands, wide, half_wide):
    process = commands.start(commands.train_words(half_wide, **STEPS, **WIDE), fault=ONLY_SMALL_FILES)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 6
    assert "warning: a checkpoint could not be written" in stderr and "training goes on" in stderr
    assert "step 8/12" in stdout  # it did
    told = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "the ones before it are intact; free some space and run the same command" in told[0]
    assert "Traceback" not in stderr
    assert steps(half_wide) == [2, 4]  # no litter
    ended(commands.train(half_wide, **STEPS, **WIDE), 0)  # there is space again
    assert digests(half_wide, 12) == digests(wide, 12) and timeless(half_wide) == timeless(wide)


def test_t10_disk_full_for_the_last_save_alone(commands, half_wide):
    process = commands.start(commands.train_words(half_wide, outer__num_steps=6, **WIDE), fault=ONLY_SMALL_FILES)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 6 and "could not be written" in stderr
    assert steps(half_wide) == [2, 4]


def test_t10_disk_full_for_a_while(commands, wide, half_wide):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
    fault = (
        f"import jaxmeta.training as m; wrap(m, 'summarise', before=lambda d, i: d.step == 6 and "
        f"{limit.format(4000)} or d.step == 10 and {limit.format('resource.RLIM_INFINITY')})"
    )
    done = commands.train(half_wide, fault=fault, **STEPS, **WIDE)
    assert done.returncode == 0, done.stderr
    assert "warning: a checkpoint could not be written" in done.stderr and "error: " not in done.stderr
    assert digests(half_wide, 12) == digests(wide, 12) and timeless(half_wide) == timeless(wide)
    assert not [path for path in half_wide.rglob("*tmp*")]


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run"])
def test_t11_a_place_that_cannot_be_written(commands, tmp_path, place):
    (tmp_path / "file").write_text("")
    done = commands.train(tmp_path / place, **STEPS)
    ended(done, 2, "cannot be written")
    assert done.stdout == ""  # before anything is compiled
    assert (tmp_path / "file").read_text() == ""


def test_t11_results_that_cannot_be_written(commands, half, tmp_path):
    (tmp_path / "file").write_text("")
    done = commands.evaluate(half, "--out", tmp_path / "file" / "out")
    ended(done, 2, "cannot be written")
    assert done.stdout == ""

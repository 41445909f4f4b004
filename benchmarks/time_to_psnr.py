"""Measures how soon a training from a cold start is as good as wanted: one process, from its start to its end.

    python benchmarks/time_to_psnr.py cars --root REALCARS --target 20.6 -- --outer.num-steps 1500

Runs train.py with the preset and the flags after `--`, then eval.py on the test split: one view, 100 steps. Prints a
row and one line of JSON; before that, each row as soon as it is there. The PSNR in training is that of the last inner
step, over the last tenth of the lines of metrics. The seconds are of train.py alone, split by when
its lines of metrics appear: the start-up (imports, data, compilation of the first steps), the training, the
validations, and the end (the last save). Programs that were compiled before are not used.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from measuring import read_flags, tell

from jaxmeta.errors import InputError, run_command

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class TimeConfig:
    """Measure the time of a training to a PSNR."""

    preset: tyro.conf.Positional[str]
    """Of train.py."""
    root: Path
    """Folder of the data set."""
    class_name: str = "car"
    """The class of scenes."""
    target: float | None = None
    """PSNR in dB that the training should reach; the row says whether it did."""
    seeds: tuple[int, ...] = (0,)
    """A training for each."""
    keep: Path | None = None
    """Folder where the runs stay; None for a temporary one."""


def main() -> None:
    """Measures what the command line asks for."""
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    wanted, flags = read_flags(TimeConfig, words[:place]), words[place + 1 :]
    for flag in ("--run", "--seed", "--data.root", "--data.class-name"):
        if any(word.split("=")[0] == flag for word in flags):
            raise InputError(f"{flag} after -- is given by the benchmark itself: drop it (--keep, --seeds, --root, ..)")
    with tempfile.TemporaryDirectory(prefix="jaxmeta-time-") as folder:
        runs = (wanted.keep or Path(folder)).absolute()
        folders = {seed: runs / f"{wanted.preset}-{seed}" for seed in wanted.seeds}
        for run in folders.values():
            if run.exists():
                raise InputError(f"--keep {runs} holds {run.name}, which would not be trained again; move it")
        rows = []
        for seed, run in folders.items():
            rows.append(measure(wanted, seed, flags, run))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    tell(rows, {"benchmark": "time_to_psnr", "preset": wanted.preset, "flags": flags})


def measure(wanted: TimeConfig, seed: int, flags: list[str], run: Path) -> dict[str, Any]:
    """Trains once, evaluates once, and returns the row."""
    data = ["--data.root", str(wanted.root.absolute()), "--data.class-name", wanted.class_name]
    train = [sys.executable, "train.py", wanted.preset, *data, "--run", str(run), "--seed", str(seed), *flags]
    arrivals: list[float] = []
    with tempfile.TemporaryDirectory(prefix="jaxmeta-programs-") as programs:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": programs}
        began = time.time()
        process = subprocess.Popen(train, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603
        while process.poll() is None:
            time.sleep(0.02)
            seen = len(read_metrics(run))
            arrivals += [time.time()] * (seen - len(arrivals))
        ended = time.time()
    if process.returncode:
        raise SystemExit(process.returncode)
    lines = read_metrics(run)
    psnr = evaluate(run)
    steps = sum(line["seconds"] for line in lines[1:])
    between = arrivals[-1] - arrivals[0] - steps
    row = {
        "seed": seed,
        "PSNR dB": psnr,
        "in training dB": statistics.mean(line["psnr"] for line in lines[-max(1, len(lines) // 10) :]),
        "seconds": ended - began,
        "start and compile s": arrivals[0] - began,
        "training s": steps,
        "validation s": between,
        "end s": ended - arrivals[-1],
        "scenes per s": statistics.median(line["scenes_per_second"] for line in lines),
    }
    return row if wanted.target is None else row | {"reached": psnr >= wanted.target}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a run's metrics so far."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def evaluate(run: Path) -> float:
    """Returns the mean PSNR in dB of the run's test scenes after 100 steps on one view."""
    words = ["eval.py", str(run), "--stages", "100", "--baselines", "--figure-scenes", "0", "--out", str(run / "eval")]
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)  # noqa: S603
    summary = json.loads((run / "eval" / "results.json").read_text())["summary"]
    return next(row["psnr_mean"] for row in summary if row["initialisation"] == "learned" and row["steps"] == 100)


if __name__ == "__main__":
    run_command(main)

"""Runs the commands as a user does, on random pictures and a tiny network; and breaks them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta import assembly, checkpoints, runfiles
from jaxmeta.cameras import orbit_pose
from jaxmeta.config import InnerConfig, TrainConfig
from jaxmeta.data.shapenet import write_scene, write_splits
from jaxmeta.kinds.views import DataConfig, FieldConfig, ViewsConfig
from jaxmeta.rendering import Sampling

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
PATIENCE = 600
"""Seconds until a command counts as hanging; on a busy machine a start alone can take minutes."""
STEPS = {"outer__num_steps": 12}
STOP_AT_6 = """
import jaxmeta.training as m
wrap(m, 'summarise', before=lambda done, ids: done.step == 6 and send(signal.SIGTERM))
"""
COMPILING = "import jaxmeta.training as m; wrap(m, 'compile_within_memory', before=lambda *_: {do})"
_WITH_A_FAULT = """
import os, resource, runpy, signal, sys, time
sys.path.insert(0, {project!r})
def wrap(module, name, before=None, after=None):
    original = getattr(module, name)
    def wrapped(*args, **kwargs):
        if before: before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after: after(*args, **kwargs)
        return result
    setattr(module, name, wrapped)
def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)  # a thread takes note of it
{fault}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_data(root: Path, seed: int = 0, size: int = 12) -> Path:
    """Three scenes to train on, one to validate, one to test; all noise."""
    rng = np.random.default_rng(seed)
    for scene in range(5):
        images = rng.integers(0, 256, (3, size, size, 4), dtype=np.uint8)
        poses = np.stack([orbit_pose(view, 0.5, 4.0) for view in range(3)])
        write_scene(root / "cube" / f"cube{scene}", images, poses, 0.7)
    splits = {"train": ["cube0", "cube1", "cube2"], "val": ["cube3"], "test": ["cube4"], "none": []}
    write_splits(root, "cube", splits)
    return root


def write_run(folder: Path) -> Path:
    """A run whose initialisation is standard, on random pictures of 'cube' scenes."""
    settings = TrainConfig(
        run=folder / "run",
        signal=ViewsConfig(
            data=DataConfig(root=write_data(folder / "data"), class_name="cube", num_views=3),
            field=FieldConfig(width=8, depth=1, num_frequencies=2, max_log2_frequency=1.0),
            sampling=Sampling(num_samples=4),
        ),
        inner=InnerConfig(num_rays=4),
    )
    runfiles.claim_run(settings)
    params = assembly.assemble(settings, size=(1, 1), num_rays=1).init(jax.random.key(0))
    state = assembly.first_state(settings, params)
    with checkpoints.open_checkpoints(settings.run) as saved:
        checkpoints.save(saved, state, {})
        checkpoints.finish(saved)
    return settings.run


class Commands:
    """Starts the commands on one data set, with the programs that were compiled before."""

    def __init__(self, folder: Path):
        self.data = write_data(folder / "data with späces")
        self._cache = folder / "compiled"

    def environment(self, num_devices: int = 1) -> dict[str, str]:
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }

    def train_words(self, run: Path, *more: object, **flags: object) -> list[str]:
        """The words after `python`; in flags, `__` stands for `.` and `_` for `-`."""
        given = {name.replace("__", ".").replace("_", "-"): value for name, value in flags.items()}
        settings = TINY | {"data.root": self.data, "run": run} | given
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [str(PROJECT / "train.py"), "toy", *map(str, (*words, *more))]

    def start(self, words: list[str], *, fault: str = "", num_devices: int = 1, **kwargs: Any) -> subprocess.Popen[str]:
        """Starts python; `fault` is code that runs before the command's."""
        if fault:
            words = ["-c", _WITH_A_FAULT.format(project=str(PROJECT), fault=fault), *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = self.environment(num_devices) | kwargs.pop("env", {})
        return subprocess.Popen([sys.executable, *words], **pipes | {"env": environment} | kwargs)

    def run(self, words: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(words, **kwargs)
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def train(
        self, run: Path, *more: object, fault: str = "", num_devices: int = 1, env: Any = None, cwd: Any = None, **flags
    ) -> subprocess.CompletedProcess[str]:
        words = self.train_words(run, *more, **flags)
        return self.run(words, fault=fault, num_devices=num_devices, env=env or {}, cwd=cwd)

    def evaluate(self, run: Path, *more: object, fault: str = "") -> subprocess.CompletedProcess[str]:
        figures = [] if "--figure-scenes" in more else ["--figure-scenes", 0]
        words = [run, "--stages", 0, 1, "--query", 1, 2, "--data-root", self.data, *figures, *more]
        return self.run([str(PROJECT / "eval.py"), *map(str, words)], fault=fault)


def ended(done: subprocess.CompletedProcess[str], code: int, message: str = "") -> None:
    """Asserts how a command ended: the code, and one line that tells why."""
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == (code != 0), done.stderr
    assert message in done.stderr
    if code:
        assert message in told[0] and done.stderr.endswith(f"{told[0]}\n"), done.stderr


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict]:
    """The metrics that a run has in common with one on a faster machine."""
    return [{name: value for name, value in row.items() if "second" not in name} for row in metrics(run)]


def steps(run: Path, name: str = "checkpoints") -> list[int]:
    """What lies in the folder of the checkpoints; anything but steps is litter and fails."""
    return sorted(int(path.name) for path in (run / name).iterdir())


def digests(run: Path, step: int, name: str = "checkpoints") -> dict[str, str]:
    return json.loads((run / name / str(step) / "meta" / "metadata").read_text())["digests"]


def same_end(run: Path, whole: Path) -> None:
    """Asserts that a run ended as one did that nothing happened to: the same bits and metrics, and no litter."""
    last = steps(whole)[-1]
    assert steps(run) == steps(whole)
    assert digests(run, last) == digests(whole, last)
    assert timeless(run) == timeless(whole)
    assert steps(run, "best") == steps(whole, "best")
    assert digests(run, steps(run, "best")[0], "best") == digests(whole, steps(whole, "best")[0], "best")
    assert not list(run.rglob("*tmp*"))

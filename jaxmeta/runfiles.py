"""Writes what a run leaves behind for people and other programs: JSON, and one line of metrics at a time."""

import contextlib
import errno
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from jaxmeta import config as configs
from jaxmeta import configfiles
from jaxmeta.config import TrainConfig
from jaxmeta.devices import is_main_process
from jaxmeta.errors import DivergedError, InputError, StorageError
from jaxmeta.training import Progress


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is there whole or not at all; of several processes only the first one writes."""
    if not is_main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def to_json(tree: Any) -> str:
    """Returns strict, indented JSON, in which a number that is not finite is null."""
    return json.dumps(_without_nan(tree), indent=2, allow_nan=False) + "\n"


def check_run(config: TrainConfig) -> None:
    """Makes sure that a run which is there is the same training.

    Raises:
      InputError: the folder holds another training.
    """
    path = config.run / "config.json"
    if path.exists():
        different = configfiles.differences(configfiles.load(path), config)
        if different:
            raise InputError(
                f"{config.run} holds a run with other settings ({'; '.join(different)}); "
                "give the old settings to continue it, or another --run"
            )


def claim_run(config: TrainConfig) -> None:
    """Writes the config of a run, which is new or the same training.

    Raises:
      InputError: the folder holds another training, or cannot be written.
    """
    path = config.run / "config.json"
    try:
        check_run(config)
        # The data are found again from any working directory.
        write_atomically(path, to_json(configs.as_dict(_with_absolute_root(config))))
    except OSError as error:
        raise InputError(f"--run {config.run} cannot be written: {error.strerror}") from error


def _with_absolute_root(config: TrainConfig) -> TrainConfig:
    data = config.signal.data
    if data.root is None:
        return config
    return configs.with_root(config, data.root.absolute())


def claim_folder(path: Path) -> None:
    """Makes a folder for results, if it can be written.

    Raises:
      InputError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; give another folder") from error


def append_metrics(run: Path, **metrics: Any) -> None:
    """Adds one line to `metrics.jsonl`, whole or not at all; of several processes only the first one writes.

    Numbers that are not finite become null, and the line says `"nonfinite": true`.

    Raises:
      StorageError: it cannot be written.
    """
    if not is_main_process():
        return
    path = run / "metrics.jsonl"
    try:
        text = json.dumps(metrics, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(metrics) | {"nonfinite": True}, allow_nan=False)
    line = f"{text}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}); free some space") from error


def cut_metrics(run: Path, step: int) -> None:
    """Removes the lines of steps after `step`, and a line that was not written whole."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def crash_report(config: TrainConfig, done: Progress, ids: tuple[str, ...]) -> DivergedError:
    """Writes what is known of a training that diverged, and returns the error that ends it."""
    path = config.run / "crash" / f"{done.step}.json"
    content = {
        "step": done.step,
        "last_good_step": done.step - done.bad_in_a_row,
        "scenes": [[ids[scene] for scene in batch] for batch in done.batches.tolist()],
        "config": configs.as_dict(config),
    }
    write_atomically(path, to_json(content))
    return DivergedError(
        f"every scene diverged in the last {done.bad_in_a_row} meta-steps, up to {done.step}; {path} tells which; the "
        "checkpoints are sound; start another run with a lower --inner.step-size or --outer.learning-rate"
    )


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

"""Writes what a run leaves behind for people and other programs: JSON, and one line of metrics at a time."""

import json
import math
import os
from pathlib import Path
from typing import Any

from jaxmeta import config as configs
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError


def write_atomically(path: Path, content: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(content)
    os.replace(temporary, path)


def to_json(tree: Any) -> str:
    """Returns strict, indented JSON, in which a number that is not finite is null."""
    return json.dumps(_without_nan(tree), indent=2, allow_nan=False) + "\n"


def claim_run(config: TrainConfig) -> None:
    """Writes the config of a new run, or makes sure that the run which is there is the same training.

    Raises:
      InputError: the folder holds another training, or cannot be written.
    """
    path = config.run / "config.json"
    try:
        if path.exists():
            different = configs.differences(configs.load(path), config)
            if different:
                raise InputError(
                    f"{config.run} holds a run with other settings ({'; '.join(different)}); "
                    "give the old settings to continue it, or another --run"
                )
        write_atomically(path, to_json(configs.as_dict(config)))
    except OSError as error:
        raise InputError(f"--run {config.run} cannot be written: {error.strerror}") from error


def append_metrics(run: Path, **metrics: Any) -> None:
    """Adds one line to `metrics.jsonl`."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(_without_nan(metrics), allow_nan=False) + "\n")


def cut_metrics(run: Path, step: int) -> None:
    """Removes the lines of steps after `step`, and a line that was not written whole."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

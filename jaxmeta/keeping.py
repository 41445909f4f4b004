"""Decides which states of a run go to disk and which one it continues from."""

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding

from jaxmeta import checkpoints
from jaxmeta.checkpoints import Checkpoints
from jaxmeta.config import TrainConfig
from jaxmeta.devices import laid_out, put
from jaxmeta.errors import CheckpointError, InputError, StorageError
from jaxmeta.metalearning import MetaState
from jaxmeta.runfiles import append_metrics, cut_metrics
from jaxmeta.training import Start

MAX_FAILURES = 3
"""So many failed saves in a row end a run."""


def resume(
    settings: TrainConfig, latest: Checkpoints, begin: Callable[[], MetaState], data: str, sharding: Sharding
) -> Start:
    """Returns where to continue from, and cuts the metrics back to it.

    A new run's state is made by another thread, since that takes a GPU seconds.

    Args:
      settings: of the run.
      latest: the run's checkpoints.
      begin: makes the state of a new run.
      data: hash of the scenes.
      sharding: how the state is laid out over the devices.

    Raises:
      CheckpointError: no checkpoint is usable.
      InputError: the run is of other data, or is not to be continued.
    """
    like = laid_out(jax.eval_shape(begin), sharding)
    found = checkpoints.restore(latest, like=like, sharding=sharding, set_aside=True)
    if found and settings.resume == "never":
        raise InputError(
            f"{settings.run} holds a run at step {found.state.step}; drop --resume never or give another --run"
        )
    if not found and settings.resume == "must":
        raise CheckpointError(f"{settings.run} holds no checkpoint to continue from; drop --resume must to start anew")
    if found and found.meta.get("data") not in (None, data):  # None: imported
        raise InputError(
            f"{settings.run} was trained on other data than {settings.signal.data.root} holds now; give "
            "the old data, or another --run"
        )
    step = int(found.state.step) if found else 0
    cut_metrics(settings.run, step)
    if found:
        return Start(step, like, lambda: found.state)
    thread = ThreadPoolExecutor(1)
    making = thread.submit(begin)
    thread.shutdown(wait=False)
    # This thread lays it out over the devices of all processes, which must ask for the same things in the same order.
    return Start(step, like, lambda: put(making.result(), sharding))


class Keeper:
    """Saves the metrics and the newest states of a run, and apart from them the state with the best validation."""

    def __init__(self, run: Path, latest: Checkpoints, best: Checkpoints, about: dict[str, Any]):
        """Starts where the run's folder stands; `about` is kept with each state."""
        self._run, self._latest, self._best, self._about = run, latest, best, about
        self._best_psnr = checkpoints.newest_meta(best).get("validation_psnr", -math.inf)
        self._unwritten: list[dict[str, Any]] = []
        self._pending = False
        self._failures = 0

    def note(self, **metrics: Any) -> None:
        """Adds a line to the run's metrics; one that cannot be written is told, and tried again with the next."""
        self._unwritten.append(metrics)
        try:
            self._write_metrics()
        except StorageError as error:
            _warn(error)

    def keep(self, state: MetaState, *, must: bool = False) -> None:
        """Saves the state; with `must`, waits until it is on disk.

        A failure is told and borne, unless it is of a save that must succeed or the last of too many in a row.

        Raises:
          StorageError: the failure is not borne.
          DivergedError: the state is not finite; it was not saved.
        """
        try:
            self._finish()
        except StorageError as error:  # of the save before this one, which shall not hinder the last
            self._bear(error, limit=math.inf if must else MAX_FAILURES)
        try:
            checkpoints.save(self._latest, state, self._about)
            self._pending = True
            if must:
                self._finish()
                self._write_metrics()
        except StorageError as error:
            self._bear(error, limit=1 if must else MAX_FAILURES)

    def keep_if_best(self, state: MetaState, psnr: float) -> None:
        """Saves the state apart if its validation PSNR, in dB, is the best so far; errors as for `keep`."""
        if psnr > self._best_psnr:
            try:
                self._finish()  # two saves at a time would mix up the processes of a run
                checkpoints.save(self._best, state, self._about | {"validation_psnr": psnr})
                checkpoints.finish(self._best)
                self._best_psnr = psnr
            except StorageError as error:
                self._bear(error, limit=MAX_FAILURES)

    def _finish(self) -> None:
        """Waits for the save under way; only when it is on disk does a row of failures end."""
        pending, self._pending = self._pending, False
        checkpoints.finish(self._latest)
        if pending:
            self._failures = 0

    def _write_metrics(self) -> None:
        while self._unwritten:
            append_metrics(self._run, **self._unwritten[0])
            del self._unwritten[0]

    def _bear(self, error: StorageError, *, limit: float) -> None:
        self._failures += 1
        if self._failures >= limit:
            raise error
        _warn(error)


def _warn(error: StorageError) -> None:
    print(f"warning: {error}; training goes on", file=sys.stderr, flush=True)

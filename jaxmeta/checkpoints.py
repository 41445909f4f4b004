"""Keeps the outer loop's state on disk: the only file that knows orbax.

    <run>/checkpoints/<step>/state/   the arrays
    <run>/checkpoints/<step>/meta/    JSON: their description, see soundness.py

A step is written under a temporary name and renamed when it is complete.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxmeta import soundness
from jaxmeta.devices import is_main_process, laid_out
from jaxmeta.errors import CheckpointError, InputError, StorageError, reason, show_if_debugging
from jaxmeta.metalearning import MetaState

Checkpoints = ocp.CheckpointManager


class Restored(NamedTuple):
    """A checkpoint that is sound."""

    state: MetaState
    meta: dict[str, Any]
    """What was kept with it; see `save`."""


@contextmanager
def open_checkpoints(
    run: Path, name: str = "checkpoints", *, keep: int = 3, read_only: bool = False
) -> Iterator[Checkpoints]:
    """Gives the checkpoints of a run.

    Args:
      run: the run's folder.
      name: of their folder in it.
      keep: how many of the newest steps stay on disk.
      read_only: touch nothing, so that a run may be read while it is trained.

    Raises:
      InputError: the folder cannot be made or read.
    """
    # Processes meet at barriers, whose names must differ between the folders of a run.
    barriers = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        multiprocessing_options=barriers,
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    try:
        if not read_only:
            (run / name).mkdir(parents=True, exist_ok=True)
        checkpoints = ocp.CheckpointManager((run / name).absolute(), options=options, item_handlers=handlers)
    except OSError as error:
        raise InputError(f"{run / name} cannot be opened: {error.strerror}; give another --run") from error
    try:
        yield checkpoints
    finally:
        # Orbax raises here again what finish() has told already.
        with contextlib.suppress(Exception):
            checkpoints.close()


def save(checkpoints: Checkpoints, state: MetaState, about: dict[str, Any]) -> None:
    """Starts to write the state under its step, in the background; takes the place of one that is there.

    Args:
      checkpoints: of a run.
      state: on the devices or the host.
      about: what else to keep with it, as JSON.

    Raises:
      DivergedError: the state is not finite, and was not saved.
      StorageError: this save, or the one before it, failed.
    """
    finish(checkpoints)
    state = jax.device_get(state)
    step = int(state.step)
    soundness.check_finite(state)
    meta = soundness.describe(state, about)
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    with _storage_errors(checkpoints):
        if step in checkpoints.all_steps():  # a run that was killed after this step comes here again
            checkpoints.delete(step)
        checkpoints.save(step, args=items, force=True)


def finish(checkpoints: Checkpoints) -> None:
    """Waits until the last save is on disk.

    Raises:
      StorageError: it failed; what was written of it is removed.
    """
    with _storage_errors(checkpoints):
        checkpoints.wait_until_finished()


@contextmanager
def _storage_errors(checkpoints: Checkpoints) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:  # the processes do not reach each other: no disk is to blame
        raise
    except Exception as error:  # orbax and tensorstore wrap an OSError in many ways
        for litter in Path(checkpoints.directory).glob("*.orbax-checkpoint-tmp*"):
            _remove(litter)
        checkpoints.reload()
        raise StorageError(
            f"a checkpoint could not be written to {checkpoints.directory} ({reason(error)}); the ones before it "
            "are intact; free some space and run the same command again"
        ) from error


def _remove(folder: Path) -> None:
    for pause in (0.1, 0.3, 1, 3):  # other threads of a save that failed may still be writing
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(pause)
        if not folder.exists():
            return


def restore(
    checkpoints: Checkpoints, like: MetaState, sharding: Sharding, *, set_aside: bool = False
) -> Restored | None:
    """Returns the newest state that is sound, or None where there are no checkpoints at all.

    Args:
      checkpoints: of a run.
      like: a state with the shapes and dtypes that are wanted.
      sharding: how the state is laid out over the devices.
      set_aside: move checkpoints that are not sound to the folder `rejected` of the run.

    Raises:
      CheckpointError: there are checkpoints and none is usable; says why each was rejected.
    """
    rejected = {}
    found = None
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            found = _restore_step(checkpoints, step, like, sharding)
            break
        except Exception as error:  # orbax raises many kinds for damaged files; each makes a step unusable
            rejected[step] = f"checkpoint {step} rejected: {reason(error)}"
            show_if_debugging(error)
            print(f"warning: {rejected[step]}", file=sys.stderr)
    if rejected and not found:
        raise CheckpointError(
            f"{checkpoints.directory} holds no usable checkpoint ({'; '.join(rejected.values())}); "
            "restore the folder, or config.json if it was changed, from a copy, or train anew with another --run"
        )
    if rejected and set_aside:
        _set_aside(checkpoints, list(rejected))
    return found


def newest_meta(checkpoints: Checkpoints) -> dict[str, Any]:
    """Returns what was kept with the newest state; nothing where there is none or it is not sound."""
    steps = sorted(checkpoints.all_steps())
    try:
        return _restore_meta(checkpoints, steps[-1]) if steps else {}
    except Exception:  # as in restore
        return {}


def _set_aside(checkpoints: Checkpoints, steps: list[int]) -> None:
    folder = Path(checkpoints.directory)
    aside = folder.parent / "rejected"
    for step in steps if is_main_process() else ():
        target = aside / f"{folder.name}-{step}"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
    multihost_utils.sync_global_devices("checkpoints set aside")
    checkpoints.reload()


def _restore_step(checkpoints: Checkpoints, step: int, like: MetaState, sharding: Sharding) -> Restored:
    meta = _restore_meta(checkpoints, step)
    try:
        soundness.check_arrays(checkpoints.item_metadata(step)["state"], like)
        target = ocp.args.StandardRestore(laid_out(like, sharding))
        state = checkpoints.restore(step, args=ocp.args.Composite(state=target))["state"]
        soundness.check_state(state, step, meta)
    except Exception as error:  # as in restore
        raise CheckpointError(f"{reason(error)}{soundness.other_versions(meta)}") from error
    return Restored(state, meta)


def _restore_meta(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    meta = checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    soundness.check_description(meta)
    return meta

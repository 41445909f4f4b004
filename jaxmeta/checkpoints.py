"""Keeps the outer loop's state on disk: the only file that knows orbax.

    <run>/checkpoints/<step>/state/   the arrays
    <run>/checkpoints/<step>/meta/    JSON: format, a SHA-256 for each array and for itself, versions, what a run tells

A step is written under a temporary name and renamed when it is complete.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import PyTree

from jaxmeta import __version__
from jaxmeta.devices import is_main_process, laid_out
from jaxmeta.errors import CheckpointError, DivergedError, InputError, StorageError, reason, show_if_debugging
from jaxmeta.metalearning import MetaState

FORMAT = 1
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")

Checkpoints = ocp.CheckpointManager


class Restored(NamedTuple):
    """A checkpoint that is sound."""

    state: MetaState
    meta: dict[str, Any]
    """What was kept with it; see `save`."""


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what a run computes."""
    return {"jaxmeta": __version__} | {package: version(package) for package in _PACKAGES}


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
    for path, leaf in _paths(state):
        if not np.isfinite(leaf).all():
            raise DivergedError(f"{path} is not finite at meta-step {step}; that state was not saved")
    meta = {"format": FORMAT, "digests": _digests(state), "versions": versions()} | about
    meta["seal"] = _seal(meta)
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
        return Restored(_restore_state(checkpoints, step, like, sharding, meta["digests"]), meta)
    except Exception as error:  # as in restore
        raise CheckpointError(f"{reason(error)}{_other_versions(meta)}") from error


def _restore_state(
    checkpoints: Checkpoints, step: int, like: MetaState, sharding: Sharding, digests: dict[str, str]
) -> MetaState:
    found, wanted = _kinds(checkpoints.item_metadata(step)["state"]), _kinds(like)
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise CheckpointError(f"{path} is {found.get(path)}, wanted {wanted.get(path)}")
    target = laid_out(like, sharding)
    state = checkpoints.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    if _digests(state) != digests:
        raise CheckpointError("its arrays differ from what was saved")
    if int(state.step) != step:
        raise CheckpointError(f"it is of step {int(state.step)}")
    return state


def _restore_meta(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    meta = checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"its format is {meta.get('format')}, jaxmeta {__version__} reads {FORMAT}; it was written by "
            f"{_listed(meta.get('versions') or {})}"
        )
    if meta.get("seal") != _seal(meta):
        raise CheckpointError("its description differs from what was saved")
    return meta


def _other_versions(meta: dict[str, Any]) -> str:
    here, there = versions(), meta.get("versions") or {}
    other = {name: there[name] for name in there if there[name] != here.get(name)}
    if not other:
        return ""
    return f"; it was written by {_listed(other)}, here is {_listed({name: here.get(name) for name in other})}"


def _listed(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items()) or "an unknown version"


def _digests(state: MetaState) -> dict[str, str]:
    digests = {}
    for path, leaf in _paths(state):
        array = np.asarray(leaf)
        content = f"{array.dtype}|{array.shape}|".encode() + array.tobytes()
        digests[path] = hashlib.sha256(content).hexdigest()
    return digests


def _seal(meta: dict[str, Any]) -> str:
    """Returns the hash of all but itself."""
    content = {name: value for name, value in meta.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _kinds(tree: PyTree) -> dict[str, str]:
    """Returns the dtype and shape of each leaf."""
    return {path: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in _paths(tree)}


def _paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns the leaves with their paths, in which a field of a tuple and a key of a dict look alike."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]

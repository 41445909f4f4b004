"""Keeps the outer loop's state on disk: the only file that knows orbax.

    <run>/checkpoints/<step>/state/   the arrays
    <run>/checkpoints/<step>/meta/    JSON: format, a SHA-256 for each array, versions

A step is written under a temporary name and renamed when it is complete.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jaxtyping import PyTree

from jaxmeta import __version__
from jaxmeta.errors import CheckpointError
from jaxmeta.metalearning import MetaState

FORMAT = 1
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")

Checkpoints = ocp.CheckpointManager


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what a run computes."""
    return {"jaxmeta": __version__} | {package: version(package) for package in _PACKAGES}


@contextmanager
def open_checkpoints(run: Path, *, keep: int = 3) -> Iterator[Checkpoints]:
    """Gives the checkpoints of a run; waits for unfinished saves at the end.

    Args:
      run: the run's folder.
      keep: how many of the newest steps stay on disk.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    checkpoints = ocp.CheckpointManager((run / "checkpoints").absolute(), options=options, item_handlers=handlers)
    try:
        yield checkpoints
        checkpoints.wait_until_finished()
    finally:
        checkpoints.close()


def save(checkpoints: Checkpoints, state: MetaState) -> None:
    """Writes the state under its step, in the background; a failure is raised by the next save or at the end."""
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    state = jax.device_get(state)
    meta = {
        "format": FORMAT,
        "digests": _digests(state),
        "versions": versions(),
    }
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    checkpoints.save(step, args=items, force=True)


def restore(checkpoints: Checkpoints, like: MetaState, sharding: Sharding) -> MetaState | None:
    """Returns the newest state that is sound, or None where there are no checkpoints at all.

    Args:
      checkpoints: of a run.
      like: a state with the shapes and dtypes that are wanted.
      sharding: how the state is laid out over the devices.

    Raises:
      CheckpointError: there are checkpoints and none is usable; says why each was rejected.
    """
    rejected = []
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            return _restore_step(checkpoints, step, like, sharding)
        except Exception as error:  # orbax raises many kinds for damaged files; each makes a step unusable
            reason = (str(error) or type(error).__name__).splitlines()[0]
            rejected.append(f"checkpoint {step} rejected: {reason}")
            print(f"warning: {rejected[-1]}", file=sys.stderr)
    if rejected:
        raise CheckpointError(
            f"{checkpoints.directory} holds no usable checkpoint ({'; '.join(rejected)}); "
            "restore the folder from a copy, or train anew with another --run"
        )
    return None


def _restore_step(checkpoints: Checkpoints, step: int, like: MetaState, sharding: Sharding) -> MetaState:
    meta = checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta["format"] != FORMAT:
        raise CheckpointError(f"format {meta['format']}, this version of jaxmeta reads {FORMAT}")
    found, wanted = _kinds(checkpoints.item_metadata(step)["state"]), _kinds(like)
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise CheckpointError(f"{path} is {found.get(path)}, wanted {wanted.get(path)}")
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    state = checkpoints.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    if _digests(state) != meta["digests"]:
        raise CheckpointError("its arrays differ from what was saved")
    return state


def _digests(state: MetaState) -> dict[str, str]:
    digests = {}
    for path, leaf in _paths(state):
        array = np.asarray(leaf)
        content = f"{array.dtype}|{array.shape}|".encode() + array.tobytes()
        digests[path] = hashlib.sha256(content).hexdigest()
    return digests


def _kinds(tree: PyTree) -> dict[str, str]:
    """Returns the dtype and shape of each leaf."""
    return {path: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in _paths(tree)}


def _paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns the leaves with their paths, in which a field of a tuple and a key of a dict look alike."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]

"""Tells whether a checkpoint holds what was saved: by a description that is kept beside the state, as JSON.

It has a SHA-256 for each array and for itself, the format, the versions that wrote it and what a run tells.
"""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxmeta import __version__
from jaxmeta.errors import CheckpointError, DivergedError
from jaxmeta.metalearning import MetaState

FORMAT = 1
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what a run computes."""
    return {"jaxmeta": __version__} | {package: version(package) for package in _PACKAGES}


def check_finite(state: MetaState) -> None:
    """Refuses a state that is not worth keeping.

    Raises:
      DivergedError: it is not finite.
    """
    for path, leaf in _paths(state):
        if not np.isfinite(leaf).all():
            raise DivergedError(f"{path} is not finite at meta-step {int(state.step)}; that state was not saved")


def describe(state: MetaState, about: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a state on the host; `about` is what else it holds."""
    meta = {"format": FORMAT, "digests": _digests(state), "versions": versions()} | about
    return meta | {"seal": _seal(meta)}


def check_description(meta: dict[str, Any]) -> None:
    """Refuses a description of another format, and one that was changed.

    Raises:
      CheckpointError: says why.
    """
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"its format is {meta.get('format')}, jaxmeta {__version__} reads {FORMAT}; it was written by "
            f"{_listed(meta.get('versions') or {})}"
        )
    if meta.get("seal") != _seal(meta):
        raise CheckpointError("its description differs from what was saved")


def check_arrays(found: PyTree, wanted: PyTree) -> None:
    """Refuses arrays of other names, shapes or dtypes than are wanted, before they are read.

    Raises:
      CheckpointError: names the first one.
    """
    kinds, wanted_kinds = _kinds(found), _kinds(wanted)
    for path in sorted(kinds.keys() | wanted_kinds.keys()):
        if kinds.get(path) != wanted_kinds.get(path):
            raise CheckpointError(f"{path} is {kinds.get(path)}, wanted {wanted_kinds.get(path)}")


def check_state(state: MetaState, step: int, meta: dict[str, Any]) -> None:
    """Refuses a state that is not the one described, or of another step.

    Raises:
      CheckpointError: says why.
    """
    if _digests(state) != meta["digests"]:
        raise CheckpointError("its arrays differ from what was saved")
    if int(state.step) != step:
        raise CheckpointError(f"it is of step {int(state.step)}")


def other_versions(meta: dict[str, Any]) -> str:
    """Returns which other versions wrote a checkpoint, to be put behind what is wrong with it; nothing for the same."""
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

"""The config.json of a run: read, and compared with another config."""

import sys
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from jaxmeta.config import TrainConfig, as_dict, flatten
from jaxmeta.errors import InputError
from jaxmeta.kinds import KINDS, ViewsConfig
from jaxmeta.words import counted

# What may change when a run continues: where things lie and how often it reports.
_FREE_TO_CHANGE = (
    "run",
    "resume",
    "step_timeout",
    "debug",
    "data.root",
    "data.verify",
    "data.residency",
    "validation.",
    "log_every",
    "checkpoint_every",
    "inner.unroll",
    "outer.scenes_at_once",
    "field.implementation",
    "processes.",
)

_MOST_TOLD = 5
"""Settings that one warning names."""


def load(path: Path) -> TrainConfig:
    """Returns the config that a file holds as JSON.

    Raises:
      InputError: the file cannot be read or is not a config.
    """
    try:
        return decode(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give the folder of a run of train.py") from error
    except InputError as error:
        raise InputError(f"{error}; mend it, or move it away and give the command that made the run again") from error


def decode(text: bytes | str, path: Path) -> TrainConfig:
    """Returns the config that a file holds as JSON; what is missing has its default, with a warning.

    Raises:
      InputError: it is not a config; names the file.
    """
    try:
        content = msgspec.json.decode(text, type=dict[str, Any])
        kind = content.get("kind", ViewsConfig.kind)
        if kind not in KINDS:
            raise InputError(f"{path} is of an unknown kind of signal, {kind!r}; wanted one of {', '.join(KINDS)}")
        types = get_type_hints(TrainConfig, include_extras=True)
        shared = {name: value for name, value in content.items() if name in types and name != "signal"}
        own = {name: value for name, value in content.items() if name not in shared}
        # The kind is known by now; msgspec has no unions of dataclasses.
        fields = _convert(shared, msgspec.defstruct("Shared", [(name, types[name]) for name in shared]))
        config = TrainConfig(**msgspec.structs.asdict(fields), signal=_convert(own, KINDS[kind]))
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not a config of this version of jaxmeta: {error}") from error
    known, given = flatten(as_dict(config)), flatten(content)
    if unknown := given.keys() - known.keys():
        raise InputError(
            f"{path} has settings that this version of jaxmeta does not know: {', '.join(sorted(unknown))}"
        )
    if missing := [name for name in known if name not in given]:
        others = len(missing) - _MOST_TOLD
        told = ", ".join(missing[:_MOST_TOLD]) + (f" and {counted(others, 'other')}" if others > 0 else "")
        print(f"warning: {path} lacks {told}, which are taken to be the defaults", file=sys.stderr)
    return config


def _convert(content: dict[str, Any], wanted: Any) -> Any:
    return msgspec.convert(content, wanted, dec_hook=lambda kind, value: kind(value))


def differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """Returns a line for each setting that makes `after` another training than `before`."""
    flat_before, flat_after = flatten(as_dict(before)), flatten(as_dict(after))
    free = (*_FREE_TO_CHANGE, "outer.num_steps") if after.outer.schedule == "constant" else _FREE_TO_CHANGE
    # Each kind of signal has settings of its own.
    values = {name: (flat_before.get(name), flat_after.get(name)) for name in flat_before | flat_after}
    return [
        f"{name}: {value} -> {other}"
        for name, (value, other) in values.items()
        if value != other and not name.startswith(free)
    ]

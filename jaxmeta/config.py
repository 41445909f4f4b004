"""What a run consists of: frozen dataclasses, which are the command line's flags."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import jax
import msgspec
import optax
import tyro

from jaxmeta.errors import InputError
from jaxmeta.kinds import KINDS, SignalConfig, ViewsConfig
from jaxmeta.metalearning import Learned
from jaxmeta.signals import Optimiser

VIEWS = ViewsConfig()


@dataclasses.dataclass(frozen=True)
class InnerConfig:
    """The inner loop, on one scene."""

    num_steps: int = 32
    """Steps in meta-training."""
    num_rays: int | None = 128
    """Drawn from the support in each step: rays of views, pixels of an image, directions of a scan. None for all."""
    num_query_rays: int | None = None
    """Rays drawn from the same views to judge the adapted network, where the algorithm does; None for as many as in a
    step."""
    optimiser: Optimiser = "sgd"
    """sgd is plain gradient descent."""
    step_size: float = 0.5
    """Learning rate of the optimiser."""
    unroll: int = 1
    """Steps in the compiled loop's body: more compiles longer and may run faster."""


@dataclasses.dataclass(frozen=True)
class StepSizesConfig:
    """What meta-sgd learns besides the initialisation: factors of --inner.step-size, which start at 1."""

    granularity: Literal["leaf", "parameter"] = "leaf"
    """One for each kernel and bias, or for each of their entries."""
    per_step: bool = False
    """Others in each inner step; in an evaluation the last ones serve all later steps."""
    learning_rate: float = 1e-2
    """Peak learning rate of Adam on them."""


@dataclasses.dataclass(frozen=True)
class OuterConfig:
    """The outer loop, over scenes: Adam on the mean of their meta-gradients."""

    algorithm: Literal["reptile", "fomaml", "maml", "meta-sgd"] = "reptile"
    """What a scene's meta-gradient is. reptile: from where it adapts to, back; fomaml: of a loss after adapting, there;
    maml: of that loss, through all steps; meta-sgd: maml, which learns the step sizes too."""
    step_sizes: StepSizesConfig = StepSizesConfig()
    num_steps: int = 25_000
    """Meta-steps in all."""
    num_scenes: int = 4
    """Scenes adapted at once in each meta-step, spread over the devices."""
    learning_rate: float = 5e-4
    """Peak learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine decays the learning rate to zero over all steps."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    clip_norm: float | None = None
    """Largest global norm of the meta-gradient; None for no clipping."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """How the initialisation is judged while it is learned: on scenes of the val split."""

    every: int = 500
    """Meta-steps between validations; 0 for none."""
    num_scenes: int = 8
    """The first so many scenes of the split, or all if there are fewer."""
    num_steps: int = 100
    """Steps of adaptation."""
    support: tuple[int, ...] = (0,)
    """Views that the inner loop fits."""
    query: tuple[int, ...] = (4, 10, 16)
    """Views that the adapted network is scored on."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """Several processes, on one host or many, that train one run together."""

    join: bool = False
    """Join the others before anything else; SLURM, GKE and TPU pods tell which they are."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where nothing else tells; the same in every process."""
    count: int | None = None
    """How many processes, where nothing else tells."""
    index: int | None = None
    """Which of them this one is, from 0, where nothing else tells."""
    heartbeat: int = 100
    """Seconds of silence after which a process counts as lost, and the others end."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Meta-learn an initialisation."""

    run: Path = Path("runs/cars")
    """Folder for the config, metrics and checkpoints. A run that is there already continues."""
    seed: int = 0
    """Of the network's start, the order of scenes and every draw."""
    start_from: Path | None = None
    """Run, or exported file, whose network to start from; None for random weights."""
    signal: Annotated[SignalConfig, tyro.conf.arg(name="")] = VIEWS
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    validation: ValidationConfig = ValidationConfig()
    processes: ProcessesConfig = ProcessesConfig()
    log_every: int = 50
    """Meta-steps that run in one go on the device, with one line of metrics."""
    checkpoint_every: int = 1000
    """Meta-steps between checkpoints; the end is always saved."""
    resume: Literal["auto", "must", "never"] = "auto"
    """Whether to continue a run that is there: auto does, or starts a new one."""
    step_timeout: float = 0.0
    """Seconds without progress after which the process ends itself and shows where it hung; 0 for never."""
    debug: bool = False
    """Show the traceback of an error."""


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
    "field.implementation",
    "processes.",
)

# Every other number must be positive.
_MAY_BE_ZERO = (
    "seed",
    "pixel_centre",
    "field.max_log2_frequency",
    "outer.warmup_steps",
    "validation.every",
    "processes.index",
    "step_timeout",
    "figure_scenes",
    "draws",
)


# Under the root of Adam's second moment: a gradient of exactly zero has no derivative otherwise. Far below any gradient
# that counts.
_ADAM_EPS_ROOT = 1e-12


def inner_optimiser(name: Optimiser, step_size: float) -> optax.GradientTransformation:
    """Returns the optimiser of an inner loop."""
    return optax.sgd(step_size) if name == "sgd" else optax.adam(step_size, eps_root=_ADAM_EPS_ROOT)


def outer_optimiser(config: OuterConfig) -> optax.GradientTransformation:
    """Returns Adam with the configured schedule and clipping; for meta-sgd, of a `Learned`.

    The norm that is clipped is that of the whole meta-gradient.
    """
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else config.learning_rate,
            config.learning_rate,
            config.warmup_steps,
            config.num_steps,
        )
    else:
        rate = optax.warmup_constant_schedule(
            0.0 if config.warmup_steps else config.learning_rate, config.learning_rate, config.warmup_steps
        )
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(optax.adam(rate))
    if config.algorithm == "meta-sgd":
        parts.append(_scale_step_sizes(config.step_sizes.learning_rate / config.learning_rate))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _scale_step_sizes(factor: float) -> optax.GradientTransformation:
    """Returns a transformation that leaves the parameters' updates and scales those of the step sizes."""

    def scale(updates: Any, params: Any) -> Any:
        del params
        return Learned(updates.params, jax.tree.map(lambda update: factor * update, updates.step_sizes))

    return optax.stateless(scale)


def check(config: TrainConfig) -> None:
    """Refuses values that cannot be meant.

    Raises:
      InputError: names the flag.
    """
    check_numbers(config)
    outer, validation = config.outer, config.validation
    if outer.schedule == "cosine" and outer.warmup_steps >= outer.num_steps:
        raise InputError(
            f"--outer.warmup-steps {outer.warmup_steps} must be fewer than --outer.num-steps {outer.num_steps}"
        )
    if validation.every and not (validation.support and validation.query):
        raise InputError(
            f"--validation.support {validation.support} and --validation.query {validation.query} must not be empty"
        )
    views = (validation.support, validation.query) if validation.every else ((), ())
    config.signal.check(num_rays=config.inner.num_rays, support=views[0], query=views[1])


def check_numbers(config: Any) -> None:
    """Refuses numbers of any command's config that are not finite, or not positive where they must be.

    Raises:
      InputError: names the flag.
    """
    for name, value in _flat(as_dict(config)).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            flag = f"--{name.replace('_', '-')} {value}"
            if not math.isfinite(value):
                raise InputError(f"{flag} must be finite")
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise InputError(f"{flag} must be {'0 or more' if name in _MAY_BE_ZERO else 'positive'}")


def as_dict(config: Any) -> dict[str, Any]:
    """Returns a config of any command as JSON has it; the settings of the kind of signal stand beside the others."""
    content = msgspec.to_builtins(config, enc_hook=str)
    if not isinstance(config, TrainConfig):
        return content
    return {"kind": config.signal.kind} | content.pop("signal") | content


def load(path: Path) -> TrainConfig:
    """Returns the config that a file holds as JSON.

    Raises:
      InputError: the file cannot be read or is not a config.
    """
    try:
        return decode(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give the folder of a run of train.py") from error


def decode(text: bytes | str, path: Path) -> TrainConfig:
    """Returns the config that a file holds as JSON; what is missing has its default.

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
    unknown = _flat(content).keys() - _flat(as_dict(config)).keys()
    if unknown:
        raise InputError(
            f"{path} has settings that this version of jaxmeta does not know: {', '.join(sorted(unknown))}"
        )
    return config


def _convert(content: dict[str, Any], wanted: Any) -> Any:
    return msgspec.convert(content, wanted, dec_hook=lambda kind, value: kind(value))


def with_root(config: TrainConfig, root: Path) -> TrainConfig:
    """Returns the config with its data at another place."""
    data = dataclasses.replace(config.signal.data, root=root)
    return dataclasses.replace(config, signal=dataclasses.replace(config.signal, data=data))


def differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """Returns a line for each setting that makes `after` another training than `before`."""
    flat_before, flat_after = _flat(as_dict(before)), _flat(as_dict(after))
    free = (*_FREE_TO_CHANGE, "outer.num_steps") if after.outer.schedule == "constant" else _FREE_TO_CHANGE
    # Each kind of signal has settings of its own.
    values = {name: (flat_before.get(name), flat_after.get(name)) for name in flat_before | flat_after}
    return [
        f"{name}: {value} -> {other}"
        for name, (value, other) in values.items()
        if value != other and not name.startswith(free)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat

"""What a run consists of: frozen dataclasses, which are the command line's flags."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tyro

from jaxmeta.errors import InputError
from jaxmeta.kinds import SignalConfig, ViewsConfig
from jaxmeta.signals import Optimiser

VIEWS = ViewsConfig()


@dataclasses.dataclass(frozen=True)
class InnerConfig:
    """The inner loop, on one scene."""

    num_steps: int = 32
    """Steps in meta-training."""
    num_rays: int | None = 128
    """Drawn from the support in each step: rays of views and pixels of an image with replacement, directions of a scan
    without. None for all."""
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
    """Scenes adapted in each meta-step, spread over the devices."""
    scenes_at_once: int | None = 32
    """Scenes that a device adapts side by side; more go in groups. Fewer need less memory; of more than 32 large ones
    less stays in a GPU's cache. None for all."""
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
    config.signal.protocol.check_apart(*views, flags="--validation.")


def check_numbers(config: Any) -> None:
    """Refuses numbers of any command's config that are not finite, or not positive where they must be.

    Raises:
      InputError: names the flag.
    """
    for name, value in flatten(as_dict(config)).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            flag = f"--{name.replace('_', '-')} {value}"
            if not math.isfinite(value):
                raise InputError(f"{flag} must be finite")
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise InputError(f"{flag} must be {'0 or more' if name in _MAY_BE_ZERO else 'positive'}")


def as_dict(config: Any) -> dict[str, Any]:
    """Returns a config of any command as JSON has it; the settings of the kind of signal stand beside the others."""
    # By asdict: of a config that msgspec made from a file, msgspec itself leaves out what the file lacked.
    content = msgspec.to_builtins(dataclasses.asdict(config), enc_hook=str)
    if not isinstance(config, TrainConfig):
        return content
    return {"kind": config.signal.kind} | content.pop("signal") | content


def with_root(config: TrainConfig, root: Path) -> TrainConfig:
    """Returns the config with its data at another place."""
    data = dataclasses.replace(config.signal.data, root=root)
    return dataclasses.replace(config, signal=dataclasses.replace(config.signal, data=data))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of a nested config by flag, such as "inner.num_steps"."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat

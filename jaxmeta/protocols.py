"""What an evaluation consists of: its flags, and the protocols of others by name.

    name        support         query                                adaptation
    original    view 0          views 1, 4, .., 22                   SGD 0.5, 1000 steps of 128 rays
    learnit     view 0          views 25 to 49                       SGD 0.5, 1000 steps of 64 rays
    nerf-meta   view 0          views 1 to 25; to 24 of fewer than 50  SGD 0.5, 1000 steps of 64 rays
    trans-inr   1 random view   1 random other, 100 pairs a scene    none, and Adam 1e-4, 100 steps of 1024 rays

original is the 100-line PyTorch script with the queries that jaxmeta added, learnit the code of Tancik et al. 2021,
nerf-meta a PyTorch reimplementation (which also takes 2000 steps), trans-inr Chen and Wang 2022.
"""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import optax
import tyro

from jaxmeta import optimisers
from jaxmeta.config import InnerConfig, check_numbers
from jaxmeta.errors import InputError
from jaxmeta.signals import Optimiser, Protocol
from jaxmeta.words import counted

ProtocolName = Literal["original", "learnit", "nerf-meta", "trans-inr"]
Baseline = Literal["standard", "mean", "matched", "shuffled", "single-view", "joint"]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Fit scenes never seen, from the learned initialisation and from others: what learning buys."""

    run: tyro.conf.Positional[Path]
    """Folder of a run of train.py."""
    split: str = "test"
    """The scenes to fit: a key of the splits file."""
    num_scenes: int | None = None
    """The first so many scenes of the split; None for all."""
    protocol: ProtocolName | None = None
    """Views, steps, rays and optimiser of another code, by name; a flag that is given beside it wins."""
    support: tuple[int, ...] | None = None
    """Views that the inner loop fits; None for the protocol's, or view 0."""
    query: tuple[int, ...] | None = None
    """Held-out views to score; None for the protocol's, or those that are usual: of views 1 4 7 10 13 16 19 22."""
    draws: int | None = None
    """Random pairs of a support and a query view for each scene, in place of --support and --query, at most as many as
    there are; 0 for none."""
    view_counts: tuple[int, ...] = ()
    """Evaluate with so many support views each: those of --support, then others that are no query views, in order."""
    stages: tuple[int, ...] | None = None
    """Numbers of inner steps after which to score, increasing; None for the protocol's, or those that are usual: of
    views 0 1 10 32 100 1000."""
    num_rays: int | None = None
    """Rays of each inner step; None for the protocol's, or the number of the training."""
    optimiser: Optimiser | None = None
    """Of the inner loop; None for the protocol's, or that of the training."""
    step_size: float | None = None
    """Learning rate of the inner loop; None for the protocol's, or that of the training."""
    baselines: tuple[Baseline, ...] = ("standard",)
    """What to compare with; nothing behind the flag for the learned initialisation alone. single-view and joint are
    trained first, in RUN/baselines, if they are not there."""
    baseline_steps: int = 1000
    """Steps of each fit behind the mean, and of the regression behind the matched baseline."""
    baseline_scenes: int = 64
    """Training scenes, at most, behind the mean and the matched baseline."""
    seeds: tuple[int, ...] = (1,)
    """Of the standard initialisation and of every draw; the whole evaluation is done for each."""
    scenes_at_once: int | None = None
    """Scenes adapted side by side; None for as many as fit into half of a GPU's memory, or 4 on a CPU."""
    lpips_weights: Path | None = None
    """A file with the weights of LPIPS, which is then scored too; the README says how to make it. None for no LPIPS."""
    figure_scenes: int = 5
    """Scenes shown in the figures; 0 for no figures."""
    data_root: Path | None = None
    """Where the data lie now; None for where they lay in training."""
    out: Path | None = None
    """Folder for the results; None for RUN/eval."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which state of the training: the newest, or the one with the best validation."""
    strict: bool = False
    """End with exit code 1 where a score is not finite."""
    debug: bool = False
    """Show the traceback of an error."""


USUAL = Protocol(optimiser=None)
PROTOCOLS: dict[ProtocolName, Protocol] = {
    "original": Protocol(num_rays=128, step_size=0.5),
    "learnit": Protocol(queries=((50, tuple(range(25, 50))),), num_rays=64, step_size=0.5),
    "nerf-meta": Protocol(queries=((50, tuple(range(1, 26))), (25, tuple(range(1, 25)))), num_rays=64, step_size=0.5),
    "trans-inr": Protocol(queries=(), stages=(0, 100), num_rays=1024, optimiser="adam", step_size=1e-4, draws=100),
}


class Plan(NamedTuple):
    """What an evaluation does: the protocol, with what the flags and the data changed."""

    protocol: str
    """The name, with what flags changed of it, as "nerf-meta, changed: stages, num-rays"; or "free"."""
    supports: tuple[tuple[int, ...], ...]
    """One set of support views for each number of views evaluated; none where they are drawn."""
    query: tuple[int, ...]
    """No support view is among them; none where they are drawn."""
    draws: int
    """Random pairs of a support and a query view for each scene; 0 where the views are fixed."""
    stages: tuple[int, ...]
    num_rays: int | None
    """Of each inner step; None for all that the support holds."""
    optimiser: Optimiser
    step_size: float


def check(wanted: EvalConfig, usual: Protocol = USUAL) -> None:
    """Refuses values that cannot be meant, whatever the data; `usual` is as for `resolve`.

    Raises:
      InputError: names the flag.
    """
    check_numbers(wanted)
    if wanted.protocol and not usual.held_out:
        raise InputError(f"--protocol {wanted.protocol} is for scenes seen in views; this run is of another kind")
    if wanted.draws and not usual.held_out:
        raise InputError(f"--draws {wanted.draws} is for scenes seen in views; this run is of another kind: drop it")
    stages, counts = wanted.stages, wanted.view_counts
    if counts and not (usual.held_out or usual.even):
        raise InputError(f"--view-counts {counts} is for scenes seen in views and for CT: parts of a picture overlap")
    if usual.even and wanted.query not in (None, (0,)):
        raise InputError(f"--query {wanted.query} is for scenes seen in views; here the slice is scored: drop it")
    if stages is not None and (list(stages) != sorted(set(stages)) or not stages or stages[0] < 0):
        raise InputError(f"--stages {stages} must be numbers of steps that increase from 0 or more")
    for name in ("support", "query"):
        views = getattr(wanted, name)
        if views is not None and (not views or min(views) < 0 or len(set(views)) < len(views)):
            raise InputError(f"--{name} {views} must be numbers of views, from 0, each once")
    if list(counts) != sorted(set(counts)) or (counts and counts[0] < 1):
        raise InputError(f"--view-counts {counts} must be numbers of views that increase from 1 or more")
    seeds, compared = wanted.seeds, wanted.baselines
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {seeds} must be one or more numbers from 0, each once")
    if len(set(compared)) < len(compared):
        raise InputError(f"--baselines {' '.join(compared)} names one twice; name each once")
    protocol = PROTOCOLS[wanted.protocol] if wanted.protocol else usual
    if protocol.draws if wanted.draws is None else wanted.draws:
        for name in ("support", "query", "view_counts"):
            if getattr(wanted, name):
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(wanted, name)} does not go with random draws; add --draws 0")


def resolve(wanted: EvalConfig, inner: InnerConfig, num_views: int, usual: Protocol = USUAL) -> Plan:
    """Returns what to do.

    Args:
      wanted: the flags, checked.
      inner: of the training.
      num_views: that every scene has.
      usual: what counts where the flags name no protocol; that of the kind of signal.

    Raises:
      InputError: the data have too few views.
    """
    protocol = PROTOCOLS[wanted.protocol] if wanted.protocol else usual
    draws = protocol.draws if wanted.draws is None else wanted.draws
    of_protocol = protocol.optimiser or inner.optimiser
    if wanted.optimiser not in (None, of_protocol) and wanted.step_size is None:
        raise InputError(f"--optimiser {wanted.optimiser} needs a --step-size: the usual one is of another optimiser")
    query = () if draws else wanted.query or _query(wanted.protocol, protocol, num_views)
    supports = () if draws else _supports(wanted, protocol, query, num_views)
    if draws and num_views < 2:
        raise InputError(
            f"a support and another query view are drawn, but the scenes have {counted(num_views, 'view')}"
        )
    pairs = num_views * (num_views - 1)
    if wanted.draws and wanted.draws > pairs:
        raise InputError(
            f"--draws {wanted.draws} are more than the {pairs} pairs of a support and another query view that "
            f"{counted(num_views, 'view')} make; give at most so many"
        )
    plan = Plan(
        protocol=wanted.protocol or "free",
        supports=supports,
        query=query,
        draws=draws,
        stages=wanted.stages or protocol.stages,
        num_rays=wanted.num_rays or protocol.num_rays or inner.num_rays,
        optimiser=wanted.optimiser or of_protocol,
        step_size=wanted.step_size or protocol.step_size or inner.step_size,
    )
    changed = _changes(plan, protocol, num_views) if wanted.protocol else []
    return plan._replace(protocol=f"{plan.protocol}, changed: {', '.join(changed)}") if changed else plan


def _changes(plan: Plan, protocol: Protocol, num_views: int) -> list[str]:
    """Returns the flags in which a plan differs from a protocol that leaves nothing to the training."""
    query = next((query for needed, query in protocol.queries if num_views >= needed), None)
    fixed = {"support": ((protocol.support,), plan.supports), "query": (query, plan.query)}
    of_both = {} if plan.draws or protocol.draws else fixed  # drawn views follow from the number of draws
    of_both |= {name.replace("_", "-"): (getattr(protocol, name), getattr(plan, name)) for name in Plan._fields[3:]}
    return [flag for flag, (theirs, ours) in of_both.items() if theirs != ours]


def _query(name: ProtocolName | None, protocol: Protocol, num_views: int) -> tuple[int, ...]:
    possible = [query for needed, query in protocol.queries if num_views >= needed]
    if not possible:
        needed = f"at least {protocol.queries[-1][0]}" if protocol.queries else "fixed"
        whose = f"--protocol {name} wants {needed} views a scene" if name else "the usual query views go up to 22"
        raise InputError(f"{whose}, the data have {num_views}; give --query")
    return possible[0]


def _supports(
    wanted: EvalConfig, protocol: Protocol, query: tuple[int, ...], num_views: int
) -> tuple[tuple[int, ...], ...]:
    first = wanted.support or protocol.support
    protocol.check_apart(first, query)
    for flag, views in (("support", first), ("query", query)):
        beyond = ", ".join(str(view) for view in views if view >= num_views)
        if beyond:
            numbers = f"{counted(num_views, 'view')}, numbered from 0 to {num_views - 1}"
            raise InputError(f"--{flag} asks for view {beyond}, but the scenes have {numbers}; choose among these")
    if protocol.even:
        evenly = ([num_views * i // count for i in range(count)] for count in wanted.view_counts)
        return tuple(map(tuple, evenly)) or (first,)
    order = (*first, *(view for view in range(num_views) if view not in {*first, *query}))
    if wanted.view_counts and wanted.view_counts[-1] > len(order):
        raise InputError(
            f"--view-counts {wanted.view_counts}: the scenes have {counted(num_views, 'view')}, of which "
            f"{len(query)} are for the query; ask for {len(order)} at most, or give fewer with --query"
        )
    return tuple(order[:count] for count in wanted.view_counts) or (first,)


def inner_optimiser(plan: Plan) -> optax.GradientTransformation:
    """Returns the optimiser of the inner loop."""
    return optimisers.inner_optimiser(plan.optimiser, plan.step_size)

"""Shows summaries of an evaluation as text for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmeta.kinds import KINDS
from jaxmeta.results import Outcome
from jaxmeta.signals import Kind
from jaxmeta.words import DIVERGED, counted

_METRICS = {"psnr": ("PSNR dB", 2), "ssim": ("SSIM", 3), "lpips": ("LPIPS (lower is better)", 3)}
"""In words, and the digits shown."""
_MATCHING = 1.0
"""dB at step 0 within which the matched baseline matches."""
SEVERAL = "mean ± standard deviation over scenes; below it the 95 % interval of the mean"
ONE = "of one scene there is no standard deviation and no interval of the mean"


def heading(about: Mapping[str, Any], num_scenes: int, outcomes: Sequence[Outcome]) -> str:
    """Returns what the tables are of, in words."""
    plan, num_seeds = about["protocol"], len({outcome.seed for outcome in outcomes})
    support, query = units(about["training"])
    num_query = outcomes[0].query.shape[1]
    views = f"{counted(outcomes[0].num_support, f'support {support}')} and {counted(num_query, f'query {query}')}"
    if plan["draws"]:
        views = f"{counted(plan['draws'], 'random pair')} of a support and a query {query}"
    return (
        f"{counted(num_scenes, 'scene')} of '{about['evaluation']['split']}', {views}, {counted(num_seeds, 'seed')}, "
        f"{meta_steps(about['training'])}\n"
        f"protocol {plan['protocol']}: {adaptation(about)}\n"
        f"{SEVERAL if num_scenes > 1 else ONE}\n"
    )


def meta_steps(training: Mapping[str, Any]) -> str:
    """Returns how long the initialisation was learned, in words, as far as that is known."""
    return "imported" if training.get("imported") else counted(training["step"], "meta-step")


def kind_of(training: Mapping[str, Any]) -> type[Kind]:
    """Returns the kind of signal of a run's config."""
    return KINDS[training.get("kind", "views")]


def units(training: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what the views of a support and of a query are called, of a run's config."""
    return kind_of(training).units


def adaptation(about: Mapping[str, Any]) -> str:
    """Returns how the fits are made, in words: the optimiser, its learning rate, what a step draws of the support."""
    plan, training = about["protocol"], about["training"]
    drawn = "all of the support in"
    if plan["num_rays"] is not None:
        drawn = counted(plan["num_rays"], kind_of(training).drawn)
    told = f"{plan['optimiser']}, learning rate {plan['step_size']:g}, {drawn} a step"
    if training["outer"]["algorithm"] == "meta-sgd":
        told += "; what is meta-learned brings its own factors of the learning rate, in which it differs too"
    return told


def of_stages(rows: Sequence[Mapping[str, Any]], paired: Sequence[Mapping[str, Any]]) -> str:
    """Returns a summary, and the differences of PSNR, of one number of support views as text.

    A column for each stage; two lines for each initialisation and metric: the mean with the standard deviation, and
    below it the 95 % interval. Of one scene there is the mean alone.
    """
    stages = list(dict.fromkeys(row["steps"] for row in rows))
    blocks = [(row["initialisation"], "psnr", row) for row in rows]
    blocks += [(f"{row['minuend']} - {row['subtrahend']}", "psnr", row) for row in paired]
    for metric in ("ssim", "lpips"):
        # No SSIM of images smaller than its window, no LPIPS without its weights.
        if not all(math.isnan(row.get(f"{metric}_mean", math.nan)) for row in rows):
            blocks += [(row["initialisation"], metric, row) for row in rows]
    return _table("inner steps", stages, blocks)


def of_divergence(summary: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], num_scenes: int, unit: str) -> str:
    """Returns in how many scenes fits diverged, and what to do, as sentences; nothing where none did.

    Args:
      summary: from `results.summary`.
      plan: of the evaluation.
      num_scenes: in all.
      unit: what the views of a support are called.
    """
    failed: dict[tuple[str, int], int] = {}
    for row in summary:
        of = row["initialisation"], row["support_views"]
        failed[of] = max(row["failed"], failed.get(of, 0))
    several = len({count for _, count in failed}) > 1
    told = [
        f"from {name}{f' with {counted(count, unit)}' if several else ''} in {number} of {counted(num_scenes, 'scene')}"
        for (name, count), number in failed.items()
        if number
    ]
    if not told:
        return ""
    return (
        f"Fits diverged: {', '.join(told)}. Where they did, a scene is left out of the means; give a --step-size below "
        f"{plan['step_size']:g}."
    )


def of_matching(paired: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence where the matched baseline does not match, as far as step 0 tells; nothing where it does.

    Args:
      paired: from `results.differences`.
    """
    for row in paired:
        if row["subtrahend"] == "matched" and row["steps"] == 0 and abs(row["psnr_mean"]) > _MATCHING:
            side = "below" if row["psnr_mean"] > 0 else "above"
            return (
                f"The matched baseline does not match: at step 0 it is {abs(row['psnr_mean']):.1f} dB {side} learned; "
                "give more --baseline-steps or --baseline-scenes."
            )
    return ""


def of_view_counts(rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Returns as text the PSNR after the last stage, with a column for each number of support views, or other units."""
    last = max(row["steps"] for row in rows)
    rows = [row for row in rows if row["steps"] == last]
    counts = list(dict.fromkeys(row["support_views"] for row in rows))
    return _table(
        f"support {unit}s, {counted(last, 'step')}", counts, [(row["initialisation"], "psnr", row) for row in rows]
    )


def of_speed(rows: Sequence[Mapping[str, Any]], seconds: Mapping[str, float], unit: str) -> str:
    """Returns as text how long an adaptation takes and how soon it is near its end, and how long everything took."""
    lines = [f"{'':<28}{'seconds per adaptation':>24}{'steps until within 0.5 dB of the end':>38}"]
    for row in rows:
        label = f"{row['initialisation']}, {counted(row['support_views'], unit)}"
        near = format(row["steps_until_near"], "g") if math.isfinite(row["steps_until_near"]) else DIVERGED
        lines.append(f"{label:<28}{row['seconds_per_adaptation']:>24.4f}{near:>38}")
    fitting, compiling = seconds["fitting_and_scoring"], seconds["of_which_compilation"]
    lines.append(f"fitted and scored in {fitting:.1f} s, of which {compiling:.1f} s compiling")
    return "\n".join(lines)


def _table(title: str, columns: Sequence[int], blocks: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Returns two lines for each name and metric of the blocks, which hold a row of a summary for each column."""
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, metric, row in blocks:
        cells.setdefault((name, metric), []).append(row)
    width = max(len(f"{name}, {_METRICS[metric][0]}") for name, metric in cells) + 1
    lines = [f"{title:<{width}}" + "".join(f"{column:>17}" for column in columns)]
    for (name, metric), rows in cells.items():
        unit, digits = _METRICS[metric]
        sign = "+" if " - " in name else ""
        label = f"{name}, {unit}"
        lines.append(f"{label:<{width}}" + "".join(f"{_mean(row, metric, digits, sign):>17}" for row in rows))
        intervals = [_interval(row, metric, digits, sign) for row in rows]
        if any(intervals):
            lines.append(" " * width + "".join(f"{interval:>17}" for interval in intervals))
    return "\n".join(lines) + "\n"


def _mean(row: Mapping[str, Any], metric: str, digits: int, sign: str) -> str:
    mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
    if not math.isfinite(mean):
        return DIVERGED
    return f"{mean:{sign}.{digits}f}" + (f" ± {std:.{digits}f}" if math.isfinite(std) else "")


def _interval(row: Mapping[str, Any], metric: str, digits: int, sign: str) -> str:
    ends = [row[f"{metric}_{end}"] for end in ("low", "high")]
    return " to ".join(f"{end:{sign}.{digits}f}" for end in ends) if all(map(math.isfinite, ends)) else ""

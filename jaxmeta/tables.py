"""Shows summaries of an evaluation as text for a terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmeta.results import Outcome

_METRICS = {"psnr": ("PSNR dB", 2), "ssim": ("SSIM", 3)}
"""In words, and the digits shown."""


def heading(about: Mapping[str, Any], num_scenes: int, outcomes: Sequence[Outcome]) -> str:
    """Returns what the tables are of, in words."""
    plan, seeds = about["protocol"], dict.fromkeys(outcome.seed for outcome in outcomes)
    views = f"{outcomes[0].num_support} support and {outcomes[0].query.shape[1]} query views"
    drawn = f"{plan['draws']} random pairs of a support and a query view" if plan["draws"] else views
    return (
        f"{num_scenes} scenes of '{about['evaluation']['split']}', {drawn}; protocol {plan['protocol']}: "
        f"{plan['optimiser']} {plan['step_size']:g}, {plan['num_rays']} rays a step\n"
        f"{about['training']['step']} meta-steps, {len(seeds)} seed{'s' * (len(seeds) > 1)}; mean ± standard deviation "
        "over scenes, below it the 95 % interval of the mean; differences are of the same scenes and draws"
    )


def of_stages(rows: Sequence[Mapping[str, Any]], paired: Sequence[Mapping[str, Any]]) -> str:
    """Returns a summary and its differences, of one number of support views, as text.

    A column for each stage; two lines for each initialisation and metric: the mean with the standard deviation, and
    below it the 95 % interval.
    """
    lines = [f"{'inner steps':<28}" + "".join(f"{steps:>17}" for steps in dict.fromkeys(row["steps"] for row in rows))]
    named = [(row["initialisation"], row) for row in rows]
    named += [(f"{row['minuend']} - {row['subtrahend']}", row) for row in paired]
    for metric, (unit, digits) in _METRICS.items():
        if all(math.isnan(row[f"{metric}_mean"]) for row in rows):
            continue  # SSIM of images smaller than its window
        for name in dict.fromkeys(name for name, _ in named):
            cells = [row for of_name, row in named if of_name == name]
            sign = "+" if " - " in name else ""
            lines += _lines(f"{name}, {unit}", cells, metric, f"{sign}.{digits}f", f".{digits}f")
    return "\n".join(lines)


def of_view_counts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns as text the PSNR after the last stage, with a column for each number of support views."""
    last = max(row["steps"] for row in rows)
    rows = [row for row in rows if row["steps"] == last]
    counts = dict.fromkeys(row["support_views"] for row in rows)
    lines = [f"{f'support views ({last} steps)':<28}" + "".join(f"{count:>17}" for count in counts)]
    for name in dict.fromkeys(row["initialisation"] for row in rows):
        cells = [row for row in rows if row["initialisation"] == name]
        lines += _lines(f"{name}, PSNR dB", cells, "psnr", ".2f", ".2f")
    return "\n".join(lines)


def of_speed(rows: Sequence[Mapping[str, Any]], stages: Sequence[int]) -> str:
    """Returns as text how long an adaptation takes, and how soon it is near its end."""
    lines = [f"{f'adaptation ({stages[-1]} steps)':<28}{'seconds':>17}{'steps to -0.5 dB':>20}"]
    for row in rows:
        label = f"{row['initialisation']}, {row['support_views']} view{'s' * (row['support_views'] > 1)}"
        near = format(row["steps_until_near"], "g") if math.isfinite(row["steps_until_near"]) else "-"
        lines.append(f"{label:<28}{row['seconds_per_adaptation']:>17.3f}{near:>20}")
    return "\n".join(lines)


def _lines(label: str, cells: Sequence[Mapping[str, Any]], metric: str, mean: str, spread: str) -> list[str]:
    def row(name: str, show: Callable[[Mapping[str, Any]], str]) -> str:
        return f"{name:<28}" + "".join(f"{show(cell):>17}" for cell in cells)

    def value(cell: Mapping[str, Any], of: str, form: str) -> str:
        number = cell[f"{metric}_{of}"]
        return format(number, form) if math.isfinite(number) else "-"

    return [
        row(label, lambda cell: f"{value(cell, 'mean', mean)} ± {value(cell, 'std', spread)}"),
        row("", lambda cell: f"{value(cell, 'low', mean)} to {value(cell, 'high', mean)}"),
    ]

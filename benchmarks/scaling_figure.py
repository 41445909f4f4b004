"""Draws what scaling.sh printed: scenes per second over the number of devices.

    benchmarks/scaling.sh 1 2 4 | tee LOG
    python benchmarks/scaling_figure.py LOG docs/scaling.png

Prints a row for each point: how many times as many scenes as one device take.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from measuring import read_flags

from jaxmeta.errors import InputError, run_command
from jaxmeta.figures import save
from jaxmeta.words import counted

EACH, IN_ALL = 16, 64
"""Scenes on each device (weak scaling), and on all of them (strong)."""


@dataclasses.dataclass(frozen=True)
class FigureConfig:
    """Draw what scaling.sh printed."""

    log: tyro.conf.Positional[Path]
    """Its output."""
    out: tyro.conf.Positional[Path]
    """The PNG file."""


def main() -> None:
    """Draws what the command line asks for."""
    wanted = read_flags(FigureConfig)
    if wanted.out.suffix != ".png":
        raise InputError(f"{wanted.out} must end in .png")
    try:
        rates = read_rates(wanted.log.read_text())
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{wanted.log} is not the output of benchmarks/scaling.sh: {error}") from error
    if not rates or not all(1 in points for points in rates.values()):
        raise InputError(f"{wanted.log}: no rows of one device; give the output of benchmarks/scaling.sh 1 2 ..")
    for name, points in rates.items():
        for count, rate in points.items():
            print(f"{name:>16}  {counted(count, 'device')}  {rate:8.1f} scenes/s  times {rate / points[1]:.2f}")
    draw(wanted.out, rates)


def read_rates(text: str) -> dict[str, dict[int, float]]:
    """Returns scenes per second by the number of devices, for each line of the figure."""
    rates: dict[str, dict[int, float]] = {}
    told: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for benchmark in told:
        for row in benchmark["rows"] if benchmark.get("benchmark") == "step_time" else []:
            kinds = [f"{EACH} on each"] * (row["scenes"] == EACH * row["devices"])
            kinds += [f"{IN_ALL} in all"] * (row["scenes"] == IN_ALL)
            for kind in kinds:
                points = rates.setdefault(f"{benchmark['implementation']}, {kind}", {})
                points[row["devices"]] = 1e3 / row["ms per scene"]
    return rates


def draw(path: Path, rates: dict[str, dict[int, float]]) -> None:
    """Writes a PNG with a line for each entry, and dashed what as many times one device would be."""
    figure = Figure(figsize=(5.6, 3.0), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots()
    for name, points in rates.items():
        counts, colour = sorted(points), f"C{int(name.startswith('xla'))}"
        weak = name.endswith("each")
        if weak:
            ideal = [points[1] * count for count in counts]
            axes.plot(counts, ideal, "--", color="0.7", label=None if colour == "C1" else "as many times one")
        axes.plot(
            counts,
            [points[count] for count in counts],
            color=colour,
            marker="os"[not weak],
            linestyle="-" if weak else ":",
            markersize=4,
            linewidth=1.5,
            label=name,
        )
    axes.set_xticks(sorted({count for points in rates.values() for count in points}))
    axes.set_xlabel("devices")
    axes.set_ylabel("scenes per second")
    axes.set_ylim(0, 1.08 * max(float(np.max(line.get_ydata())) for line in axes.lines))
    axes.grid(color="0.9", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, path)


if __name__ == "__main__":
    run_command(main)

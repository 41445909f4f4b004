"""Compares the learned initialisation from n projections with the standard one from n and 2 n, each at its best.

    python benchmarks/ct_views.py EVAL_FOLDER...

Each folder holds the results.json of `eval.py RUN --view-counts ..`, with another optimiser or rate. For each number of
projections and each initialisation the steps and the folder with the highest mean PSNR count: that favours neither.
Differences are paired by slice; the intervals are 95 % of their mean.
"""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import tyro
from measuring import read_flags

from jaxmeta.errors import InputError, run_command

Scores = dict[tuple[str, int], dict[tuple[str, int], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compare initialisations by the number of projections."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Of eval.py, each of one optimiser and rate."""


def main() -> None:
    """Prints a line for each number of projections."""
    wanted = read_flags(CompareConfig)
    if len({folder.resolve() for folder in wanted.folders}) < len(wanted.folders):
        raise InputError(f"{' '.join(map(str, wanted.folders))} names a folder twice; name each once")
    found = read_scores(wanted.folders)
    best = {key: max(of_key.items(), key=lambda item: item[1].mean()) for key, of_key in found.items()}
    for count in sorted({count for _, count in best}):
        (where, steps), learned = best["learned", count]
        print(f"{count} views: learned {interval(learned)} ({steps} steps, {where})", end="")
        for other in (count, 2 * count):
            if ("standard", other) in best:
                (where, steps), standard = best["standard", other]
                gain = interval(learned - standard)
                print(f"; standard with {other}: {interval(standard)} ({steps} steps, {where}), gain {gain}", end="")
        print()


def read_scores(folders: tuple[Path, ...]) -> Scores:
    """Returns PSNRs in dB, in the order of the slices: by initialisation and projections, then by folder and steps."""
    scores: dict[tuple[str, int], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        path = folder / "results.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file; give folders that eval.py has written")
        for row in json.loads(path.read_text())["views"]:
            scores[row["initialisation"], row["support_views"]][str(folder), row["steps"]].append(row["psnr"])
    return {key: {place: np.array(values) for place, values in of_key.items()} for key, of_key in scores.items()}


def interval(values: np.ndarray) -> str:
    """Returns the mean with its 95 % interval, of a normal distribution."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.2f} ± {half:.2f} dB"


if __name__ == "__main__":
    run_command(main)

"""Turns the scores of an evaluation into a table, records and figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmeta.evaluation import Scores

SCHEMA = 1
METRICS = ("psnr", "ssim")


def summary(scores: Mapping[str, Scores], stages: Sequence[int]) -> list[dict[str, Any]]:
    """Returns for each initialisation and stage the mean over scenes and the standard deviation between them.

    A scene's score is the mean over its query views.
    """
    rows = []
    for name, of_name in scores.items():
        for stage, steps in enumerate(stages):
            row: dict[str, Any] = {"initialisation": name, "steps": steps}
            for metric in METRICS:
                of_scenes = getattr(of_name, metric)[:, stage].mean(axis=1)
                row[f"{metric}_mean"], row[f"{metric}_std"] = float(of_scenes.mean()), float(of_scenes.std())
            rows.append(row)
    return rows


def records(
    scores: Mapping[str, Scores], stages: Sequence[int], ids: Sequence[str], query: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns one record for each initialisation, scene, view and stage."""
    return [
        {
            "initialisation": name,
            "scene": scene_id,
            "view": view,
            "steps": steps,
            **{metric: float(getattr(of_name, metric)[i, j, k]) for metric in METRICS},
        }
        for name, of_name in scores.items()
        for i, scene_id in enumerate(ids)
        for j, steps in enumerate(stages)
        for k, view in enumerate(query)
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns records of one kind as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a summary as text: a line for each initialisation and metric, a column for each stage."""
    stages = list(dict.fromkeys(row["steps"] for row in rows))
    names = list(dict.fromkeys(row["initialisation"] for row in rows))
    by_place = {(row["initialisation"], row["steps"]): row for row in rows}
    lines = [f"{'inner steps':<24}" + "".join(f"{steps:>15}" for steps in stages)]
    for metric, unit, digits in (("psnr", "PSNR dB", 2), ("ssim", "SSIM", 3)):
        for name in names:
            cells = (by_place[name, steps] for steps in stages)
            shown = (f"{cell[f'{metric}_mean']:.{digits}f} ± {cell[f'{metric}_std']:.{digits}f}" for cell in cells)
            lines.append(f"{name + ', ' + unit:<24}" + "".join(f"{cell:>15}" for cell in shown))
    return "\n".join(lines)

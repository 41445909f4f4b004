"""Turns the scores of an evaluation into records and summaries.

A scene's score is the mean over its query views (or draws) and over the seeds. Of an initialisation are reported the
mean over scenes, the standard deviation and the 95 % interval of the mean; of two initialisations, the same of the
differences of each scene's scores, which come from the same views and the same draws. `statistics.py` has the formulas.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxmeta.evaluation import Scores
from jaxmeta.statistics import estimate, steps_until_near

SCHEMA = 3
LEARNED = "learned"


class Outcome(NamedTuple):
    """How one initialisation did, for one number of support views and one seed."""

    initialisation: str
    seed: int
    scores: Scores
    """Leading axis: scenes. The views of all draws are along the last one."""
    support: Int[np.ndarray, "scenes views support_views"]
    """Which of their scene's views were fitted, for each view that was scored."""
    query: Int[np.ndarray, "scenes views"]
    """Which of their scene's views were scored."""
    seconds: float
    """That an adaptation took; all steps, one scene's share of its batch."""

    @property
    def num_support(self) -> int:
        """How many views were fitted."""
        return self.support.shape[-1]


def summary(outcomes: Sequence[Outcome], stages: Sequence[int]) -> list[dict[str, Any]]:
    """Returns for each initialisation, number of support views and stage the estimates of each metric.

    `failed` counts the scenes whose PSNR is not finite; they are left out. `psnr_seed_std` is the standard deviation
    between seeds of the mean over scenes, null for one seed.
    """
    rows = []
    for (name, count), group in _grouped(outcomes).items():
        of_scenes = {metric: _of_scenes(group, metric) for metric in _metrics(group)}
        of_seeds = np.stack([_nan_mean(_of_scenes([outcome], "psnr"), 0) for outcome in group])
        seed_std = of_seeds.std(axis=0, ddof=1) if len(group) > 1 else np.full(len(stages), np.nan)
        for stage, steps in enumerate(stages):
            row = {"initialisation": name, "support_views": count, "steps": steps}
            for metric, values in of_scenes.items():
                row |= _named(metric, values[:, stage])
            row["psnr_seed_std"] = float(seed_std[stage])
            row["failed"] = int(np.sum(~np.isfinite(of_scenes["psnr"][:, stage])))
            rows.append(row)
    return rows


def differences(outcomes: Sequence[Outcome], stages: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the estimates of what the learned initialisation has over each other one: paired, scene by scene."""
    groups = _grouped(outcomes)
    return [
        {"minuend": LEARNED, "subtrahend": name, "support_views": count, "steps": steps}
        | {
            key: value
            for metric in _metrics(group)
            for key, value in _named(
                metric, (_of_scenes(groups[LEARNED, count], metric) - _of_scenes(group, metric))[:, stage]
            ).items()
        }
        for (name, count), group in groups.items()
        if name != LEARNED
        for stage, steps in enumerate(stages)
    ]


def adaptation(outcomes: Sequence[Outcome], stages: Sequence[int]) -> list[dict[str, Any]]:
    """Returns how long the adaptations took, and the median over scenes of the steps until within 0.5 dB of the end."""
    return [
        {
            "initialisation": name,
            "support_views": count,
            "seconds_per_adaptation": float(np.mean([outcome.seconds for outcome in group])),
            "steps_until_near": _nan_median(steps_until_near(_of_scenes(group, "psnr"), stages)),
        }
        for (name, count), group in _grouped(outcomes).items()
    ]


def records(outcomes: Sequence[Outcome], stages: Sequence[int], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one record for each initialisation, number of support views, seed, scene, view and stage."""
    return [
        {
            "initialisation": outcome.initialisation,
            "support_views": outcome.num_support,
            "seed": outcome.seed,
            "scene": scene_id,
            "support": outcome.support[i, k].tolist(),
            "view": int(outcome.query[i, k]),
            "steps": steps,
            **{metric: float(getattr(outcome.scores, metric)[i, j, k]) for metric in _metrics([outcome])},
        }
        for outcome in outcomes
        for i, scene_id in enumerate(ids)
        for j, steps in enumerate(stages)
        for k in range(outcome.query.shape[1])
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns records of one kind as CSV with a header.

    The cell of a number that is not finite is empty; that of a list has its items with blanks between them.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def _grouped(outcomes: Sequence[Outcome]) -> dict[tuple[str, int], list[Outcome]]:
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.initialisation, outcome.num_support), []).append(outcome)
    return groups


def _metrics(group: Sequence[Outcome]) -> list[str]:
    """Returns what was scored; all outcomes of an evaluation are alike in that."""
    return [name for name, values in group[0].scores._asdict().items() if values is not None]


def _of_scenes(group: Sequence[Outcome], metric: str) -> Float[np.ndarray, "scenes stages"]:
    """Returns the mean over seeds and views; NaN where one of them is."""
    return np.mean([np.asarray(getattr(of.scores, metric), np.float64).mean(axis=-1) for of in group], axis=0)


def _named(metric: str, values: Float[np.ndarray, "scenes"]) -> dict[str, float]:
    found = estimate(values)
    return {f"{metric}_{name}": getattr(found, name) for name in ("mean", "std", "low", "high")}


def _nan_mean(values: Float[np.ndarray, "scenes stages"], axis: int) -> Float[np.ndarray, "stages"]:
    return np.where(np.isfinite(values).any(axis), np.ma.masked_invalid(values).mean(axis).filled(np.nan), np.nan)


def _nan_median(values: Float[np.ndarray, "scenes"]) -> float:
    finite = values[np.isfinite(values)]
    # Of an even number the lower one, so that it is a number of steps that was scored.
    return float(np.percentile(finite, 50, method="lower")) if len(finite) else math.nan

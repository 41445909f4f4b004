"""Puts what an evaluation found into sentences and tables; its rows are those of results.json."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmeta.gallery import steps
from jaxmeta.tables import ONE, SEVERAL, adaptation, kind_of, meta_steps, of_divergence, of_matching, units
from jaxmeta.words import DIVERGED, counted

BASELINES = {
    "standard": "random, as the network is made",
    "mean": "the mean of the parameters of networks that were fitted to training scenes",
    "matched": "trained to show, before any step, what the learned initialisation shows",
    "shuffled": "the learned parameters, in random order within each array",
    "single-view": "meta-learned from one view of each training scene",
    "joint": "one network trained on all training scenes at once: a single inner step, as many in all",
    "learned": "meta-learned, so that a few steps fit a scene",
}
"""What the initialisations are, in words."""
METRICS = {
    "psnr": ("PSNR of the query, dB", ".2f"),
    "ssim": ("SSIM of the query", ".3f"),
    "lpips": ("LPIPS of the query: lower is better", ".3f"),
}

Rows = Sequence[Mapping[str, Any]]


class Table(NamedTuple):
    """Numbers as text; the second line of a cell is set small."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def lead(content: Mapping[str, Any], num_scenes: int) -> str:
    """Returns what was found: the PSNR after the last step, how that compares, and what went wrong."""
    rows = _of_first_count(content["summary"])
    count, last = rows[0]["support_views"], rows[-1]["steps"]
    reached = {row["initialisation"]: row["psnr_mean"] for row in rows if row["steps"] == last}
    scenes = "a scene" if num_scenes == 1 else counted(num_scenes, "scene")
    seen = "of the training" if content["evaluation"]["split"] == "train" else "not seen before"
    more = [
        row
        for row in _of_first_count(content["differences"])
        if row["subtrahend"] == "standard" and row["steps"] == last
    ]
    found = (
        f"Fitted with {steps(last)} to {_support_in_words(content, count)} of {scenes} {seen}, "
        f"{_scores_in_words(reached, more, _query_in_words(content))}."
    )
    diverged = of_divergence(content["summary"], content["protocol"], num_scenes, units(content["training"])[0])
    return " ".join(filter(None, (found, diverged, of_matching(content["differences"]))))


def _scores_in_words(reached: Mapping[str, float], more: Rows, where: str) -> str:
    """Returns the mean PSNR of the learned and the standard initialisation; `more` holds their difference, if any."""

    def reaches(psnr: float) -> str:
        return f"reaches {_number(psnr, '.1f')} dB{where}" if math.isfinite(psnr) else f"{DIVERGED} in every scene"

    found = f"the learned initialisation {reaches(reached['learned'])}"
    if not more:
        return found
    if not math.isfinite(more[0]["psnr_mean"]):
        return f"{found}, the standard one {reaches(reached['standard'])}"
    found += f", the standard one {_number(reached['standard'], '.1f')} dB: a difference of "
    found += f"{_number(more[0]['psnr_mean'], '+.1f')} dB"
    if math.isfinite(more[0]["psnr_low"]):
        found += f" (95 % interval {_span(more[0], 'psnr', '+.1f')}, paired over scenes)"
    return found


def _support_in_words(content: Mapping[str, Any], count: int) -> str:
    supports, names = content["protocol"]["supports"], _names(content["training"])
    if names and count == 1 and supports:
        return f"the {names[supports[0][0]]}"
    return counted(count, units(content["training"])[0])


def _query_in_words(content: Mapping[str, Any]) -> str:
    """Returns what was scored, where that can be said: views that were not fitted, a part, or the one that was."""
    plan, kind, names = content["protocol"], content["training"].get("kind", "views"), _names(content["training"])
    if kind == "views":
        return " on other views"
    if kind == "ct" or plan["draws"]:
        return ""
    if set(plan["query"]) <= set(plan["supports"][0]):
        return " on the same part"
    return f" on the {names[plan['query'][0]]} of each" if names else ""


def _names(training: Mapping[str, Any]) -> tuple[str, ...]:
    return kind_of(training).names


def algorithm(training: Mapping[str, Any]) -> str:
    """Returns the name of what learned the initialisation, with its source."""
    return {
        "reptile": "Reptile (Nichol et al. 2018)",
        "fomaml": "first-order MAML (Finn et al. 2017)",
        "maml": "MAML (Finn et al. 2017)",
        "meta-sgd": "Meta-SGD (Li et al. 2017)",
    }[training["outer"]["algorithm"]]


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Returns the scores with the paired differences, the numbers of views and the speed, as far as they are there."""
    summary, paired = _of_first_count(content["summary"]), _of_first_count(content["differences"])
    made = [
        _by_steps(title, summary, paired, metric, form)
        for metric, (title, form) in METRICS.items()
        if any(math.isfinite(row.get(f"{metric}_mean", math.nan)) for row in summary)
    ]
    if len({row["support_views"] for row in content["summary"]}) > 1:
        made.append(_by_views(content["summary"], units(content["training"])[0]))
    return [*made, _speed(content["adaptation"], units(content["training"])[0])]


def facts(content: Mapping[str, Any], num_scenes: int) -> dict[str, str]:
    """Returns the protocol and where the numbers come from, in words."""
    plan, training, wanted = content["protocol"], content["training"], content["evaluation"]
    weights = wanted.get("lpips_weights")
    of_lpips = {"LPIPS": f"version 0.1 on AlexNet, weights of {weights}"} if weights else {}
    return {
        "protocol": str(plan["protocol"]),
        "scenes": f"{num_scenes} of the split {wanted['split']}, class {class_of(training)}",
        **_views(plan, training),
        "adaptation": f"{adaptation(content)}; scored after {_listed(plan['stages'])} steps",
        "seeds": _listed(wanted["seeds"]),
        **_fitted_baselines(wanted),
        **of_lpips,
        "meta-learning": f"{_meta_learning(training)}; run {training['run']}",
        "made with": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        "on": str(content["devices"]),
    }


def _fitted_baselines(wanted: Mapping[str, Any]) -> dict[str, str]:
    """Returns how long and on how many scenes the baselines were fitted that are not meta-learned."""
    fitted = [name for name in ("mean", "matched") if name in wanted["baselines"]]
    scenes = counted(wanted["baseline_scenes"], "training scene")
    return {" and ".join(fitted): f"{steps(wanted['baseline_steps'])}, at most {scenes}"} if fitted else {}


def _views(plan: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, str]:
    """Returns what was fitted and what was scored, by name or number."""
    support, query = units(training)
    if plan["draws"]:
        pairs = counted(plan["draws"], "random pair")
        return {f"{support}s": f"{pairs} of a support and a query {query} for each scene"}
    names = dict(enumerate(_names(training)))

    def listed(views: Iterable[int]) -> str:
        return _listed(names.get(view, view) for view in views)

    scored = listed(plan["query"]) if query == support else f"the {query}"
    return {f"support {support}s": "; ".join(map(listed, plan["supports"])), f"query {query}s": scored}


def _meta_learning(training: Mapping[str, Any]) -> str:
    """Returns how the initialisation was learned, or where it was imported from: what it went through is not known."""
    if training.get("imported"):
        return f"{meta_steps(training)} from {training['imported']}"
    scenes, inner = counted(training["outer"]["num_scenes"], "scene"), training["inner"]["num_steps"]
    return f"{meta_steps(training)} of {scenes}, {counted(inner, 'inner step')}"


def _of_first_count(rows: Rows) -> Rows:
    return [row for row in rows if row["support_views"] == rows[0]["support_views"]]


def _by_steps(title: str, summary: Rows, paired: Rows, metric: str, form: str) -> Table:
    cells: dict[str, list[str]] = {}
    for row in summary:
        cells.setdefault(row["initialisation"], []).append(_cell(row, metric, form))
    for row in paired:
        cells.setdefault(f"{row['minuend']} − {row['subtrahend']}", []).append(_cell(row, metric, f"+{form}"))
    spread = any(math.isfinite(row[f"{metric}_std"]) for row in summary)
    caption = f"{(SEVERAL if spread else ONE).capitalize()}."
    if paired:
        caption += " Differences are paired: of the same scenes with the same draws."
    header = ["", *map(steps, dict.fromkeys(row["steps"] for row in summary))]
    return Table(title, header, [[name, *of_name] for name, of_name in cells.items()], caption)


def _by_views(rows: Rows, unit: str) -> Table:
    last = max(row["steps"] for row in rows)
    rows = [row for row in rows if row["steps"] == last]
    names = dict.fromkeys(row["initialisation"] for row in rows)
    counts = dict.fromkeys(row["support_views"] for row in rows)
    body = [[of, *(_cell(row, "psnr", ".2f") for row in rows if row["initialisation"] == of)] for of in names]
    header = ["", *(counted(count, unit) for count in counts)]
    caption = f"After {steps(last)}, as above, with more support {unit}s."
    return Table(f"PSNR over the number of support {unit}s, dB", header, body, caption)


def _speed(rows: Rows, unit: str) -> Table:
    body = [
        [row["initialisation"], str(row["support_views"]), _number(row["seconds_per_adaptation"], ".3f"),
         _number(row["steps_until_near"], "g")]
        for row in rows
    ]  # fmt: skip
    header = ["", f"support {unit}s", "seconds an adaptation", "steps until within 0.5 dB of the end"]
    caption = (
        "Seconds are one scene's share of its batch, for all steps; steps are the median over scenes, the lower one of "
        "two, of the first stage from which on the PSNR stays that near."
    )
    return Table("Speed", header, body, caption)


def _cell(row: Mapping[str, Any], metric: str, form: str) -> str:
    mean, std = _number(row[f"{metric}_mean"], form), row[f"{metric}_std"]
    if not math.isfinite(std):
        return mean
    return f"{mean} ± {_number(std, form.removeprefix('+'))}\n{_span(row, metric, form)}"


def _span(row: Mapping[str, Any], metric: str, form: str) -> str:
    return f"{_number(row[f'{metric}_low'], form)} to {_number(row[f'{metric}_high'], form)}"


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else DIVERGED


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def class_of(training: Mapping[str, Any]) -> str:
    """Returns what was learned, of a run's config: the class of scenes, or the kind of signal."""
    kinds = {"ct": "CT slices", "images": "pictures"}
    return str(training["data"].get("class_name") or kinds.get(training["kind"]) or training["kind"])

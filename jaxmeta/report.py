"""Writes an evaluation as one HTML file that needs nothing else: pictures are inside, there are no scripts.

What comes from data, such as ids and paths, is escaped.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from jaxmeta.figures import DPI, Picture
from jaxmeta.findings import BASELINES, Table, algorithm, class_of, facts, lead, tables

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    path: Path, content: Mapping[str, Any], *, num_scenes: int, curves: Sequence[Picture], pictures: Sequence[Picture]
) -> None:
    """Writes the report of an evaluation.

    Args:
      path: the HTML file.
      content: of results.json.
      num_scenes: that were evaluated.
      curves: stand below the first table.
      pictures: the first one opens the report.
    """
    names = dict.fromkeys(row["initialisation"] for row in content["summary"])
    scores, *others = tables(content)
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"What a learned initialisation buys: {class_of(content['training'])}"),
        lead=escape(lead(content, num_scenes)),
        opening="\n".join(map(_figure, pictures[:1])),
        initialisations=_list((name, BASELINES.get(name, "")) for name in names),
        numbers="\n".join([_table(scores), *map(_figure, curves), *map(_table, others)]),
        pictures="\n".join(map(_figure, pictures[1:])) or '<p class="note">No pictures were asked for.</p>',
        facts=_list(facts(content, num_scenes).items()),
        algorithm=escape(algorithm(content["training"])),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _figure(picture: Picture) -> str:
    with Image.open(picture.path) as image:
        kind, pixels = Image.MIME[image.format or "PNG"], image.width
    # A figure in its own inches, of which a screen has 96 pixels each; a film in its own pixels.
    width = pixels if kind == "image/gif" else round(pixels * 96 / DPI)
    content = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f'<figure><img width="{width}" src="data:{kind};base64,{content}" alt="{escape(picture.title)}">'
        f"<figcaption><h3>{escape(picture.title)}</h3>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = "\n".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f'<h3>{escape(table.title)}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div><p class="note">{escape(table.caption)}</p>'
    )


def _list(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{_text(name)}</dt><dd>{escape(told)}</dd>" for name, told in entries)


def _text(cell: str) -> str:
    first, *below = escape(cell).split("\n")
    if first in ("learned", "standard"):
        first = f'<span class="{first}">{first}</span>'
    return first + "".join(f"<br><small>{line}</small>" for line in below)

"""Looks through a whole data set and tells all that is wrong with it, not only the first thing.

python -m jaxmeta.data.check DATA --class-name car
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from jaxmeta.cameras import Views
from jaxmeta.data import srn
from jaxmeta.data.faults import faults_of
from jaxmeta.data.scenes import SceneFolder
from jaxmeta.data.splits import Layout, SplitSource, find_split
from jaxmeta.errors import InputError, run_command
from jaxmeta.words import counted


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Look through a whole data set for what is broken or suspicious."""

    root: tyro.conf.Positional[Path]
    """Folder of the data set."""
    class_name: str = "car"
    """The class of scenes."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Which splits to look at."""
    num_views: int = 25
    """Views looked at of each scene: the first ones."""
    layout: Layout = "auto"
    """How the files are laid out; auto looks what is there."""
    assume_opaque: bool = False
    """Take RGB images, which have no alpha, as opaque."""


MOST_ERRORS = 5
"""So many are listed of a scene; the others are counted."""


class Finding(NamedTuple):
    """What is known of one scene."""

    scene: SceneFolder
    errors: tuple[str, ...]
    size: tuple[int, ...] = ()
    """Views, height and width."""
    distances: tuple[float, float] = (0.0, 0.0)
    """Nearest and furthest camera, from the origin."""
    warnings: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    """Of each image."""


def main() -> None:
    """Looks through the data set that the command line names; raises InputError where it found an error."""
    wanted = tyro.cli(CheckConfig, prog="python -m jaxmeta.data.check")
    num_errors = 0
    seen: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, tuple[str, Path]] = {}
    for split in wanted.splits:
        try:
            # Of folders of splits the overlap is told scene by scene, below.
            folders = srn.split_folder(wanted.root, wanted.class_name, split) is not None
            source = find_split(wanted.root, wanted.class_name, split, wanted.layout, allow_overlap=folders)
        except InputError as error:
            _tell(f"{split}: error: {error}")
            num_errors += 1
            continue
        for scene in source.scenes:
            other_split, other_folder = owners.setdefault(scene.id, (split, scene.folder))
            if other_folder != scene.folder:  # A Blender scene is one folder with all splits.
                _tell(f"{split}: error: {scene.folder} has the id of {other_folder}, of split '{other_split}'")
                num_errors += 1
        findings = list(_look(source, wanted, split))
        for line in _report(split, findings):
            _tell(line)
        num_errors += sum(len(finding.errors) for finding in findings) + (len(_sizes(findings)) > 1)
        for finding in findings:
            for digest in finding.digests:
                seen[digest].add(split)
    for pair, count in Counter(tuple(sorted(splits)) for splits in seen.values() if len(splits) > 1).items():
        _tell(f"warning: the same in {' and '.join(pair)}: {counted(count, 'image')}")
    if num_errors:
        raise InputError(f"{wanted.root} has {counted(num_errors, 'error')}, listed above")


def _tell(line: str) -> None:
    print(line.encode(errors="backslashreplace").decode())  # A file may have a name that is no text.


def _look(source: SplitSource, wanted: CheckConfig, split: str) -> Iterator[Finding]:
    load = partial(source.load_scene, num_views=wanted.num_views, assume_opaque=wanted.assume_opaque)

    def look(scene: SceneFolder) -> Finding:
        try:
            return _examine(scene, load(scene.folder))
        except InputError as error:
            return Finding(scene, faults_of(error))

    with ThreadPoolExecutor() as pool:
        findings = pool.map(look, source.scenes)
        yield from tqdm(findings, total=len(source.scenes), desc=split, unit="scene", disable=None, leave=False)


def _examine(scene: SceneFolder, views: Views) -> Finding:
    alpha = views.images[..., 3]
    covered = alpha.any(axis=(1, 2))
    warnings = []
    if not covered.any():
        warnings.append("is transparent in all views")
    elif not covered.all():
        warnings.append(f"is transparent in views {np.flatnonzero(~covered).tolist()}")
    elif not views.images[alpha > 0][:, :3].any():
        warnings.append("is black in all views")
    digests = tuple(
        hashlib.sha256(image.tobytes()).hexdigest()
        for image, visible in zip(views.images, covered, strict=True)
        if visible
    )
    if len(set(digests)) < len(digests):
        warnings.append("shows the same image twice")
    distances = np.linalg.norm(views.poses[:, :3, 3], axis=-1)
    away = np.sum(views.poses[:, :3, 2] * views.poses[:, :3, 3], axis=-1) <= 0
    if away.any():
        warnings.append(f"has cameras that look away from the origin in views {np.flatnonzero(away).tolist()}")
    spread = (float(distances.min()), float(distances.max()))
    return Finding(scene, (), views.images.shape[:3], spread, tuple(warnings), digests)


def _report(split: str, findings: list[Finding]) -> Iterator[str]:
    sound = [finding for finding in findings if not finding.errors]
    sizes = _sizes(findings)
    shown = ", ".join(f"{count} of {counted(v, 'view')} of {w} x {h}" for (v, h, w), count in sizes.most_common())
    yield f"{split}: {counted(len(findings), 'scene')}, {len(sound)} sound: {shown or 'none'}"
    if sound:
        nearest = min(finding.distances[0] for finding in sound)
        furthest = max(finding.distances[1] for finding in sound)
        yield f"{split}: cameras are {nearest:.3g} to {furthest:.3g} from the origin"
    if len(sizes) > 1:
        yield f"{split}: error: all scenes of a split must have one size"
    for finding in findings:
        yield from (f"{split}: error: {error}" for error in finding.errors[:MOST_ERRORS])
        if len(finding.errors) > MOST_ERRORS:
            yield f"{split}: error: and {len(finding.errors) - MOST_ERRORS} more in {finding.scene.folder}"
        yield from (f"{split}: warning: {finding.scene.folder} {warning}" for warning in finding.warnings)


def _sizes(findings: list[Finding]) -> Counter[tuple[int, ...]]:
    return Counter(finding.size for finding in findings if not finding.errors)


if __name__ == "__main__":
    run_command(main)

"""LPIPS against the authors' package, and as a third score of an evaluation."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import ended, write_data

from jaxmeta import lpips
from jaxmeta.errors import InputError
from jaxmeta.evaluation import make_score

KERNELS = {
    "net.slice1.0": (64, 3, 11, 11), "net.slice2.3": (192, 64, 5, 5), "net.slice3.6": (384, 192, 3, 3),
    "net.slice4.8": (256, 384, 3, 3), "net.slice5.10": (256, 256, 3, 3),
}  # fmt: skip


def chirp(*shape: int) -> np.ndarray:
    """Numbers in [-1, 1] that look like noise and are the same on every machine."""
    return np.sin(0.1 * np.arange(math.prod(shape)) ** 2.0).reshape(shape).astype(np.float32)


def state() -> dict[str, np.ndarray]:
    """Weights that no training found, with the names of the package's state dict."""
    arrays = {}
    for index, (name, shape) in enumerate(KERNELS.items()):
        arrays[f"{name}.weight"] = 2 * chirp(*shape) / np.float32(math.sqrt(math.prod(shape[1:])))
        arrays[f"{name}.bias"] = chirp(shape[0]) / 10
        arrays[f"lin{index}.model.1.weight"] = np.square(chirp(1, shape[0], 1, 1))
    return arrays


def two_pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    first = (1 + chirp(height, width, 3)) / 2
    return first, first[::-1] / 2


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    safetensors.numpy.save_file(state(), path)
    return path


@pytest.fixture(scope="module")
def distance(weights_file):
    return jax.jit(partial(lpips.distance, lpips.read(weights_file)))


# Of lpips 0.1.4 under torch 2.13, in float64: LPIPS(net="alex", pnet_rand=True), then load_state_dict(state(),
# strict=False), then model.double()(first, second, normalize=True) of `two_pictures`.
@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (31, 31, 1.2143478226610624),
        (64, 48, 1.2719838599362112),
        (128, 128, 1.4792285823278477),
        (97, 178, 1.4997638328081613),
    ],
)
def test_the_authors_package_agrees(distance, height, width, wanted):
    first, second = two_pictures(height, width)
    np.testing.assert_allclose(distance(first, second), wanted, rtol=1e-5)
    np.testing.assert_allclose(distance(first, first), 0, atol=1e-9)


def test_weights_may_be_npz(weights_file, tmp_path):
    np.savez(tmp_path / "lpips.npz", **state())
    jax.tree.map(np.testing.assert_array_equal, lpips.read(tmp_path / "lpips.npz"), lpips.read(weights_file))


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("lin4.model.1.weight", None, "lacks 'lin4.model.1.weight'; make the file from lpips"),
        ("net.slice1.0.weight", chirp(64, 3, 3, 3), r"slice1.0.weight' is \(64, 3, 3, 3\), wanted \(64, 3, 11, 11\)"),
        ("lin0.model.1.weight", chirp(1, 64, 1, 1), "'lin0.model.1.weight' has negative weights"),
        ("net.slice5.10.bias", np.full(256, np.nan, np.float32), "'net.slice5.10.bias' has values that are not finite"),
    ],
)  # fmt: skip
def test_other_weights_are_refused(tmp_path, name, array, told):
    arrays = state() | {name: array}
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({name: array for name, array in arrays.items() if array is not None}, path)
    with pytest.raises(InputError, match=told) as raised:
        lpips.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [None, b"no weights", b"\x80\x04pickled"])
def test_what_holds_no_arrays_is_refused(tmp_path, content):
    path = tmp_path / "lpips.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match="cannot be read.*; make the file" if content is None else "is not a sound safetensors file"
    ):
        lpips.read(path)


def test_pictures_that_alexnet_cannot_see_are_refused():
    lpips.check((31, 128, 3))
    with pytest.raises(InputError, match="31 x 31 pixels or more, what is scored has 128 x 30"):
        lpips.check((128, 30, 3))
    with pytest.raises(InputError, match="3 channels, this run shows 1"):
        lpips.check((128, 128, 1))


def test_tasks_are_scored_with_clipped_colours(mesh8):
    # Of 16 tasks, 2 stages, against 3 pictures each; colours are fitted. The distance is not symmetric: order shows.
    adapted, query = (
        np.linspace(-1, 2, 16 * 2).reshape(16, 2, 1, 1, 1),
        np.linspace(0, 1, 16 * 3).reshape(16, 3, 1, 1, 1),
    )
    score = make_score(
        lambda colour, _: colour, lambda item: item, mesh8, lpips=lambda one, other: (2 * one - other).sum()
    )
    scores = score(*(array.astype(np.float32) for array in (adapted, query)))
    wanted = 2 * np.clip(adapted, 0, 1).reshape(16, 2, 1) - query.reshape(16, 1, 3)
    np.testing.assert_allclose(scores.lpips, wanted, atol=1e-6)


def test_an_evaluation_scores_it_where_weights_are_given(commands, whole, weights_file, tmp_path):
    ended(
        commands.evaluate(whole, "--lpips-weights", weights_file, "--out", tmp_path / "small"),
        2,
        "has 12 x 12; score larger ones",
    )
    larger = write_data(tmp_path / "larger", size=32)
    words = [whole, "--data-root", larger, "--figure-scenes", 0, "--num-rays", 4, "--out"]
    with_it = commands.evaluate(*words, tmp_path / "with", "--lpips-weights", weights_file)
    without = commands.evaluate(*words, tmp_path / "without")
    ended(with_it, 0)
    ended(without, 0)
    assert "learned, LPIPS (lower is better)" in with_it.stdout and "LPIPS" not in without.stdout
    kept, plain = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("with", "without"))
    for part in ("summary", "differences", "views"):
        for row, plain_row in zip(kept[part], plain[part], strict=True):
            added = {name: value for name, value in row.items() if "lpips" in name}
            assert row.keys() - added.keys() == plain_row.keys()
            assert all(np.isfinite(value) for name, value in added.items() if name in ("lpips", "lpips_mean"))
    assert all(row["lpips_mean"] > 0 and "lpips_low" in row for row in kept["summary"])
    with (tmp_path / "with" / "results.csv").open() as file:
        assert {float(row["lpips"]) for row in csv.DictReader(file)} == {row["lpips"] for row in kept["views"]}
    reports = [(tmp_path / name / "report.html").read_text() for name in ("with", "without")]
    assert ["LPIPS of the query: lower is better" in text for text in reports] == [True, False]
    assert [str(weights_file) in text for text in reports] == [True, False]

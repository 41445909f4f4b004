"""Figures from arrays whose pixels are known: what stands where, and that nothing missing breaks them."""

from pathlib import Path

import imageio.v3 as iio
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import closeups, figures, gallery, pictures
from jaxmeta.assembly import assemble
from jaxmeta.cameras import Views
from jaxmeta.comparison import Shown
from jaxmeta.config import TrainConfig
from jaxmeta.evaluation import Fit, Scores
from jaxmeta.figures import Cell, Scale
from jaxmeta.gallery import Exhibition
from jaxmeta.kinds.views import ViewsConfig
from jaxmeta.signals import Split
from jaxmeta.tasks import Tasks

RED, GREEN, BLUE = ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))
NUM_SCENES, STAGES, NUM_QUERY = 5, (0, 4), 3
SIGNAL = assemble(TrainConfig(run=Path()), size=(6, 8), num_rays=1)._replace(render_pose=None)


def plain(colour, height=4, width=4) -> np.ndarray:
    return np.broadcast_to(np.asarray(colour, np.float32), (height, width, len(colour)))


def read(path) -> np.ndarray:
    return iio.imread(path, plugin="pillow")[..., :3].astype(int)


def exhibition(num_scenes=NUM_SCENES, num_support=1, num_query=NUM_QUERY, names=("standard", "learned"), channels=3):
    """Fields that show one grey, their only parameter; learned ones that of their target, scene by scene."""
    greys = np.linspace(0.2, 0.8, num_scenes, dtype=np.float32)
    query = np.broadcast_to(greys[:, None], (num_scenes, num_query))
    fits = {}
    for name in names:
        reached = greys if name == "learned" else np.ones_like(greys)
        params = np.stack([np.ones_like(greys), reached], axis=1)
        # The best scene is the last but one.
        scores = 20 - np.abs(np.arange(num_scenes) - (num_scenes - 2.0))
        shape = (num_scenes, len(STAGES), num_query)
        fits[name] = Fit(params, Scores(*[np.broadcast_to(scores[:, None, None], shape)] * 2), np.ones(num_scenes))

    def image(grey) -> jnp.ndarray:
        return jnp.full((6, 8, channels), grey)

    ids = [f"$scene_{number}$" for number in range(num_scenes)]
    return Exhibition(
        ids=ids,
        given=lambda scene: image(greys[scene]),
        support=query[:, :num_support],
        query=query,
        notes=lambda scene, index: (f"view {scene}", f"view {10 * scene + index}"),
        explanation="Grey is grey.",
        fits=fits,
        stages=STAGES,
        predict=lambda params, _: image(params),
        target=image,
    )


def test_a_grid_shows_its_images_in_order_at_their_aspect(tmp_path):
    rows = [[Cell(plain(RED, 4, 8)), Cell(plain(GREEN, 4, 8))], [Cell(plain(BLUE, 4, 8)), Cell(plain(RED, 4, 8))]]
    figures.image_grid(tmp_path / "new" / "grid.png", rows, column_titles=["a", "b"], row_titles=["c", "d"])
    shown = read(tmp_path / "new" / "grid.png")
    places = {}
    for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        places[name] = np.argwhere(np.all(np.abs(shown - 255 * np.asarray(colour)) < 20, axis=-1))
    size = np.ptp(places["green"], axis=0) + 1
    assert size[1] / size[0] == pytest.approx(2, rel=0.03)
    assert places["green"][:, 1].min() > places["blue"][:, 1].max()
    assert places["blue"][:, 0].min() > places["green"][:, 0].max()
    assert len(places["red"]) == pytest.approx(2 * len(places["green"]), rel=0.01)


def test_titles_however_long_stay_inside(tmp_path):
    titles = ["a_very_long_identifier_of_a_scene_0001", "0123456789abcdef0123456789abcdef"]
    rows = [[Cell(plain(RED), "9.9 dB")], [Cell(plain(RED), "9.9 dB")]]
    figures.image_grid(
        tmp_path / "grid.png", rows, column_titles=["support view\n(1 of 2)"], row_titles=titles, groups={"learned": 1}
    )
    shown = read(tmp_path / "grid.png")
    for edge in (shown[:2], shown[-2:], shown[:, :2], shown[:, -2:]):
        assert edge.min() == 255
    assert shown[:, :60].min() < 255  # where the longest line begins


def test_signals_over_one_dimension_are_curves(tmp_path):
    """A ramp from 0 to 1 is drawn from the lower left to the upper right; what is lost of it is a map, as high."""
    ramp = np.linspace(0, 1, 50)[None, :, None]
    cells = [Cell(ramp), Cell(ramp[..., 0], scale=Scale("error", 0.0, 1.0, "gray"))]
    figures.image_grid(tmp_path / "grid.png", [cells], column_titles=["", ""], row_titles=[""], cell_width=1.0)
    shown = read(tmp_path / "grid.png")
    left, top = round(0.08 * figures.DPI), round((0.12 + figures.LINE) * figures.DPI)
    curve = shown[top + 3 : top + round(figures.CURVE_ASPECT * figures.DPI) - 3, left + 3 : left + figures.DPI - 3]
    places = np.argwhere(curve.max(axis=-1) < 120)
    assert np.corrcoef(places.T)[0, 1] < -0.99
    assert np.ptp(places[:, 0]) > 0.8 * len(curve)
    shade = shown[top + len(curve) // 2, round(left + 1.05 * figures.DPI) + 3 :, 0][: figures.DPI - 6]
    assert np.all(np.diff(shade) >= 0) and np.ptp(shade) > 240


def test_the_comparison_names_the_views(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(gallery, "image_grid", lambda path, rows, **rest: drawn.update(rows=rows, **rest))
    told = gallery.comparison(tmp_path / "comparison.png", exhibition(), [0, 4])
    assert [[cell.note for cell in row[:2]] for row in drawn["rows"]] == [["view 0", "view 1"], ["view 4", "view 41"]]
    assert told.caption.endswith("of which more is better. Grey is grey.")


def test_novel_views_name_the_views(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(gallery, "image_grid", lambda path, rows, **rest: drawn.update(rows=rows, **rest))
    gallery.novel_views(tmp_path / "novel_views.png", exhibition(), [3])
    truth, fitted = ([cell.note for cell in row] for row in drawn["rows"])
    assert truth == ["view 3", "view 30", "view 31", "view 32"]
    assert fitted == ["", "20.0 dB", "20.0 dB", "20.0 dB"]


def test_an_exhibition_has_the_numbers_of_the_data_set():
    """Scenes of seven views, whose images are their numbers; what is scored differs from scene to scene."""
    views = Views(np.zeros((2, 7, 1, 1, 4), np.uint8), np.zeros((2, 7, 4, 4), np.float32), np.ones(2, np.float32))
    views.images[..., 0] = np.arange(7)[:, None, None]
    tasks = Tasks(np.arange(2), np.array([[6, 2], [0, 5]]), np.array([[3], [4]]))
    split = Split(("a", "b"), views, (1, 1), "")
    signal = SIGNAL._replace(target=lambda view: view.image)
    shown = pictures.exhibition(ViewsConfig(), signal, split, STAGES, Shown({}, tasks))
    assert [shown.notes(scene, 0) for scene in range(2)] == [
        ("view 6 (1 of 2)", "view 3"),
        ("view 0 (1 of 2)", "view 4"),
    ]
    assert [int(shown.given(scene)[0, 0, 0]) for scene in range(2)] == [6, 0]
    assert [int(shown.wanted(scene, 0).image[0, 0, 0]) for scene in range(2)] == [3, 4]


def test_heat_maps_have_their_colours_and_a_bar(tmp_path):
    scale = Scale("error (unit)", 0.0, 0.5, "magma_r")
    cells = [Cell(np.full((4, 4), value), scale=scale) for value in (0.0, 0.9)]
    for name, row in (("heat", cells), ("grey", [Cell(cell.image) for cell in cells])):
        figures.image_grid(tmp_path / f"{name}.png", [row], column_titles=["a", "b"], row_titles=["c"])
    heat, grey = read(tmp_path / "heat.png"), read(tmp_path / "grey.png")
    assert heat.shape[0] > grey.shape[0] and heat.shape[1] == grey.shape[1]
    # Beyond the end of the scale is its end, the black of magma; 0 is its pale yellow. Greys have no colour.
    assert np.sum(np.all(heat == (0, 0, 4), axis=-1) | np.all(heat == (0, 0, 3), axis=-1)) > 10_000
    assert np.sum(np.all(np.abs(heat - (252, 253, 191)) < 2, axis=-1)) > 10_000
    assert np.ptp(grey, axis=-1).max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_extremes_are_the_best_and_worst_by_psnr(tmp_path, monkeypatch, channels):
    drawn = {}
    monkeypatch.setattr(closeups, "image_grid", lambda path, rows, **rest: drawn.update(rows=rows, **rest))
    closeups.extremes(tmp_path / "extremes.png", exhibition(channels=channels))
    # Scenes 0 to 4 have 17, 18, 19, 20, 19 dB.
    assert [title.split("\n")[:2] for title in drawn["row_titles"]] == [
        ["best", "$scene_3$"], ["best", "$scene_2$"], ["worst", "$scene_1$"], ["worst", "$scene_0$"]
    ]  # fmt: skip
    _, target, _, _, standard_error, learned_error = drawn["rows"][0]
    np.testing.assert_allclose(learned_error.image, np.zeros((6, 8)))
    # The standard field is white, the target has the grey 0.65.
    np.testing.assert_allclose(standard_error.image, np.full((6, 8), 0.35), rtol=1e-5)
    assert standard_error.scale == learned_error.scale and target.scale is None


def diverged(shown, *scenes):
    """Returns an exhibition where fits from the learned initialisation are not finite."""
    scores = shown.fits["learned"].scores.psnr.copy()
    scores[list(scenes)] = np.nan
    return shown._replace(fits=shown.fits | {"learned": shown.fits["learned"]._replace(scores=Scores(scores, scores))})


def test_a_scene_that_diverged_is_the_worst(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(closeups, "image_grid", lambda path, rows, **rest: drawn.update(rest))
    closeups.extremes(tmp_path / "extremes.png", diverged(exhibition(), 3))
    assert drawn["row_titles"][-1].split("\n") == ["worst", "$scene_3$", "diverged"]


def test_a_scene_that_is_the_only_one_is_neither_best_nor_worst(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(closeups, "image_grid", lambda path, rows, **rest: drawn.update(rest))
    told = closeups.extremes(tmp_path / "extremes.png", exhibition(num_scenes=1))
    assert drawn["row_titles"] == ["$scene_0$\n19.0 dB"]
    assert told.title == "Errors" and "Chosen" not in told.caption


@pytest.mark.parametrize(
    ("num_scenes", "failed", "wanted"), [(5, (), 2), (5, (2, 3), 1), (5, (0, 1, 2, 4), 3), (2, (0, 1), 0), (1, (), 0)]
)
def test_the_typical_scene_is_the_median_of_those_that_did_not_diverge(num_scenes, failed, wanted):
    # Scenes 0 to 4 have 17, 18, 19, 20, 19 dB; of an even number it is the upper one.
    shown = diverged(exhibition(num_scenes=num_scenes), *failed)
    assert pictures.typical_scene(shown) == wanted


def test_what_is_not_finite_is_not_drawn_white(tmp_path):
    broken = plain(RED) * np.nan
    figures.image_grid(tmp_path / "a.png", [[Cell(broken, "diverged")]], column_titles=[""], row_titles=[""])
    picture = read(tmp_path / "a.png")
    assert (picture == 0xE6).all(axis=-1).mean() > 0.3


def test_interpolation_goes_from_one_scene_to_the_other(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(closeups, "image_grid", lambda path, rows, **rest: drawn.update(rows=rows, **rest))
    closeups.interpolation(tmp_path / "between.png", exhibition(), [0, 4], num_places=4)
    learned = [float(cell.image.mean()) for cell in drawn["rows"][drawn["row_titles"].index("learned")]]
    np.testing.assert_allclose(learned, [0.2, 0.4, 0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize(("count", "most", "chosen"), [(5, 3, [0, 2, 4]), (2, 4, [0, 1]), (1, 4, [0]), (9, 0, [])])
def test_spread(count, most, chosen):
    assert gallery.spread(count, most) == chosen


MISSING = {
    "nothing": {},
    "one scene, one query, several support views": {"num_scenes": 1, "num_query": 1, "num_support": 3},
    "no standard": {"names": ("learned",)},
    "one channel and a baseline": {"names": ("standard", "shuffled", "learned"), "channels": 1, "num_scenes": 2},
}


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING.keys())
def test_what_is_missing_breaks_nothing(tmp_path, missing):
    shown = exhibition(**missing)
    made = pictures.write_pictures(tmp_path, SIGNAL, shown, span=(2.0, 6.0), num_scenes=2)
    assert all(picture.path.is_file() and picture.title and picture.caption for picture in made)
    names = {picture.path.stem for picture in made}
    assert names >= {"comparison", "extremes"} and "novel_views" not in names  # nothing is seen in views
    assert ("baselines" in names) == ("shuffled" in shown.fits)
    assert ("interpolation" in names) == (len(shown.ids) > 1)


def test_no_figures_are_made_of_no_scenes(tmp_path):
    made = pictures.write_pictures(tmp_path, SIGNAL, exhibition(), span=(2.0, 6.0), num_scenes=0)
    assert made == [] and not list(tmp_path.iterdir())


def test_curves_have_bands_in_the_colours_of_their_initialisations(tmp_path):
    rows = [
        {"initialisation": name, "support_views": count, "steps": step, "psnr_mean": mean, "psnr_low": low,
         "psnr_high": mean + 1}
        for name, mean in (("standard", 10.0), ("learned", 20.0))
        for count in (1, 3)
        for step, low in ((0, float("nan")), (1, mean - 1), (100, mean - 1))
    ]  # fmt: skip
    made = pictures.write_curves(tmp_path, rows, "view")
    assert [picture.path.name for picture in made] == ["psnr.png", "support_views.png"]
    shown = read(made[0].path)
    above, below = [], []
    for colour, place in ((figures.COLOURS["learned"], above), (figures.COLOURS["standard"], below)):
        wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        plot = shown[:, : 2 * shown.shape[1] // 3]  # without the legend
        place += [np.argwhere(np.all(np.abs(plot - wanted) < 8, axis=-1))[:, 0].mean()]
        # The band: the colour with an opacity of 0.18 on white.
        band = 255 + 0.18 * (np.asarray(wanted) - 255)
        assert np.sum(np.all(np.abs(plot - band) < 3, axis=-1)) > 5_000
    assert above[0] < below[0]
    one_count = [row for row in rows if row["support_views"] == 1]
    assert len(pictures.write_curves(tmp_path, one_count, "view")) == 1


@pytest.mark.parametrize("theirs", ["", "{}", '{\n  "schema": 1'])
def test_pictures_of_an_earlier_evaluation_go_and_nothing_else(tmp_path, theirs):
    ours = ("slices.png", "turntable.mp4", "report.html")
    for name in (*ours, "mine.png", "results.csv"):
        (tmp_path / name).write_text("")
    if theirs:
        (tmp_path / "results.json").write_text(theirs)
    pictures.remove_earlier(tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"results.json"}
    assert left == {"mine.png", "results.csv"} | (set() if "schema" in theirs else set(ours))

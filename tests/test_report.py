"""The report as a stranger gets it: one file, nothing from elsewhere, nothing from data read as markup."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from jaxmeta import findings
from jaxmeta.figures import Picture
from jaxmeta.report import write_report

EVIL = "<script>alert('&\"</script>$title"
NAN = float("nan")


def row(count, steps, mean, **names) -> dict:
    spread = {"std": 1.5, "low": mean - 1, "high": mean + 1}
    scores = {f"psnr_{name}": value for name, value in ({"mean": mean} | spread).items()}
    names |= {"failed": 0}
    return names | {"support_views": count, "steps": steps} | scores | {f"ssim_{of}": NAN for of in ("mean", "std", "low", "high")}  # noqa: E501  # fmt: skip


def content(names=("standard", "learned"), counts=(1,), evil="car") -> dict:
    means = {"standard": 11.0, "learned": 22.25}
    return {
        "protocol": {
            "protocol": "free", "supports": [[0]], "query": [1, 4], "draws": 0, "stages": [0, 100], "num_rays": 128,
            "optimiser": "sgd", "step_size": 0.5,
        },
        "evaluation": {
            "split": evil, "seeds": [1], "baselines": ["standard"], "baseline_steps": 50, "baseline_scenes": 7,
        },
        "training": {
            "step": 2500, "run": evil, "data": {"class_name": evil}, "outer": {"num_scenes": 4, "algorithm": "reptile"},
            "inner": {"num_steps": 32},
        },
        "versions": {"jax": "1.2.3"},
        "devices": "1 x cpu",
        "summary": [row(count, steps, means[name], initialisation=name) for count in counts for name in names
                    for steps in (0, 100)],
        "differences": [row(count, steps, 11.25, minuend="learned", subtrahend="standard") for count in counts
                        for steps in (0, 100) if "standard" in names],
        "adaptation": [{"initialisation": name, "support_views": 1, "seconds_per_adaptation": 0.5,
                        "steps_until_near": NAN} for name in names],
    }  # fmt: skip


@pytest.fixture
def pictures(tmp_path) -> list[Picture]:
    made = []
    for name, form in (("film.gif", "GIF"), ("figure.png", "PNG")):
        Image.new("RGB", (400, 10), "red").save(tmp_path / name, form)
        made.append(Picture(tmp_path / name, f"{name} {EVIL}", EVIL))
    return made


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text; fails where elements are not nested."""

    VOID = ("meta", "img", "br", "circle", "path", "rect", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_nothing_comes_from_elsewhere_and_nothing_from_data_is_markup(tmp_path, pictures):
    path = tmp_path / "new" / "report.html"
    write_report(path, content(evil=EVIL), num_scenes=3, curves=pictures[1:], pictures=pictures)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "href"
            assert name != "src" or value.startswith("data:image/"), tag
    assert not re.search(r"https?://|url\(\s*[^#)]|@import", text)
    assert page.text.count(EVIL) >= 6  # title twice, captions, facts: as it is


def test_pictures_are_inside_at_their_size(tmp_path, pictures):
    write_report(tmp_path / "report.html", content(), num_scenes=3, curves=[], pictures=pictures)
    images = [attributes for tag, attributes in Page((tmp_path / "report.html").read_text()).elements if tag == "img"]
    assert [image["src"].split(";")[0] for image in images] == ["data:image/gif", "data:image/png"]
    # A film has its pixels, a figure its inches: 400 pixels at 200 an inch are 2 inches, 192 pixels of a screen.
    assert [image["width"] for image in images] == ["400", "192"]
    assert all(image["alt"] for image in images)


def test_the_lead_tells_what_was_found():
    assert findings.lead(content(), 3) == (
        "Fitted with 100 steps to 1 view of 3 scenes not seen before, the learned initialisation reaches 22.2 dB on "
        "other views, the standard one 11.0 dB: a difference of +11.2 dB (95 % interval +10.2 to +12.2, paired over "
        "scenes)."
    )
    alone = findings.lead(content(names=("learned",)), 1)
    assert alone.endswith("of a scene not seen before, the learned initialisation reaches 22.2 dB on other views.")


def test_the_lead_tells_what_diverged():
    found = content()
    found["summary"][3] |= {"psnr_mean": NAN, "failed": 3}
    found["differences"][1] |= {"psnr_mean": NAN, "psnr_low": NAN}
    assert findings.lead(found, 3) == (
        "Fitted with 100 steps to 1 view of 3 scenes not seen before, the learned initialisation diverged in every "
        "scene, the standard one reaches 11.0 dB on other views. Fits diverged: from learned in 3 of 3 scenes. Where "
        "they did, a scene is left out of the means; give a --step-size below 0.5."
    )


def test_the_lead_tells_once_that_the_matched_baseline_does_not_match():
    found = content()
    found["differences"] += [row(1, steps, 3.0, minuend="learned", subtrahend="matched") for steps in (0, 100)]
    assert findings.lead(found, 3).endswith(
        "The matched baseline does not match: at step 0 it is 3.0 dB below learned; give more --baseline-steps or "
        "--baseline-scenes."
    )
    assert not any("does not match" in table.caption for table in findings.tables(found))


def test_of_one_scene_there_is_the_mean_alone():
    found = content()
    for one in found["summary"] + found["differences"]:
        one |= {"psnr_std": NAN, "psnr_low": NAN, "psnr_high": NAN}
    scores, _ = findings.tables(found)
    assert scores.rows[1:] == [["learned", "22.25", "22.25"], ["learned − standard", "+11.25", "+11.25"]]
    assert scores.caption.startswith("Of one scene there is no")


@pytest.mark.parametrize(
    ("kind", "plan", "fitted", "scored"),
    [
        ("ct", {"supports": [[5]], "query": [0]}, "1 projection", ""),
        ("images", {"supports": [[0]], "query": [0]}, "the whole", " on the same part"),
        ("images", {"supports": [[1]], "query": [2]}, "the left half", " on the right half of each"),
    ],
)
def test_the_lead_names_what_was_fitted_and_scored(kind, plan, fitted, scored):
    found = content()
    found["training"]["kind"] = kind
    found["protocol"] |= plan
    assert f"to {fitted} of 3 scenes" in findings.lead(found, 3)
    assert f"reaches 22.2 dB{scored}, the standard" in findings.lead(found, 3)


def test_an_imported_initialisation_is_called_so():
    found = content()
    assert findings.facts(found, 3)["meta-learning"] == "2,500 meta-steps of 4 scenes, 32 inner steps; run car"
    found["training"] |= {"step": 0, "imported": "cars.npz, nerf-meta"}
    found["evaluation"]["baselines"] = ["standard", "matched", "mean"]
    assert findings.facts(found, 3)["mean and matched"] == "50 steps, at most 7 training scenes"
    assert findings.facts(found, 3)["meta-learning"] == "imported from cars.npz, nerf-meta; run car"


@pytest.mark.parametrize(
    ("kind", "plan", "told"),
    [
        ("views", {}, {"support views": "0", "query views": "1, 4"}),
        ("views", {"draws": 9}, {"views": "9 random pairs of a support and a query view for each scene"}),
        (
            "ct",
            {"supports": [[0], [0, 64]], "query": [0]},
            {"support projections": "0; 0, 64", "query slices": "the slice"},
        ),
        ("images", {"supports": [[1]], "query": [2]}, {"support parts": "left half", "query parts": "right half"}),
    ],
)
def test_each_kind_has_its_words_for_views(kind, plan, told):
    found = content(counts=(1, 2))
    found["training"]["kind"] = kind
    found["protocol"] |= plan
    facts = findings.facts(found, 3)
    assert {name: fact for name, fact in facts.items() if name in told} == told
    unit = next(iter(told)).removeprefix("support ")
    *_, by_views, speed = findings.tables(found)
    assert list(by_views.header)[1:] == [f"1 {unit[:-1]}", f"2 {unit}"]
    assert speed.header[1] == f"support {unit}"


def test_tables_hold_scores_differences_and_view_counts():
    scores, speed = findings.tables(content())
    assert [line[0] for line in scores.rows] == ["standard", "learned", "learned − standard"]
    assert list(scores.header) == ["", "0 steps", "100 steps"]
    assert scores.rows[1][2] == "22.25 ± 1.50\n21.25 to 23.25"
    assert scores.rows[2][1] == "+11.25 ± 1.50\n+10.25 to +12.25"
    assert speed.rows[0][1:] == ["1", "0.500", "diverged"]  # of no scene is it known
    by_views = findings.tables(content(counts=(1, 3)))[1]
    assert list(by_views.header) == ["", "1 view", "3 views"]


@pytest.mark.parametrize("broken", ["no pictures", "no baselines", "no finite score", "draws"])
def test_what_is_missing_breaks_nothing(tmp_path, pictures, broken):
    found = content(names=("learned",)) if broken == "no baselines" else content()
    if broken == "no finite score":
        for one in found["summary"] + found["differences"]:
            one.update({name: NAN for name, value in one.items() if isinstance(value, float)})
    if broken == "draws":
        found["protocol"] |= {"draws": 100, "supports": [], "query": []}
    shown = [] if broken == "no pictures" else pictures
    write_report(tmp_path / "report.html", found, num_scenes=1, curves=[], pictures=shown)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "nan" not in text and ("100 random pairs" in text) == (broken == "draws")
    assert "What is compared" in text

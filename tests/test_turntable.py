"""Films of an adaptation whose every frame is known in closed form, and the files they become."""

import importlib.util
import itertools
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxmeta import films, turntable
from jaxmeta.films import Film


@pytest.mark.parametrize(("num_frames", "num_steps"), [(30, 100), (30, 1000), (12, 3), (5, 0), (1, 7), (2, 7)])
def test_frames_begin_before_the_first_step_and_end_after_the_last(num_frames, num_steps):
    told = turntable.frame_steps(num_frames, num_steps)
    assert len(told) == num_frames and told == sorted(told)
    assert told[0] == 0 and (told[-1] == num_steps or num_frames == 1)
    if num_frames == 30:
        assert 8 <= told.count(num_steps) <= 14  # the end is shown for about 40 % of the film
        assert told[1] <= 1


def test_the_camera_goes_once_around_and_looks_at_the_middle():
    pose = np.eye(4)
    pose[:3, 3] = (0.0, 3.0, 4.0)
    poses = turntable.orbit_poses(pose, 8)
    places, looks = poses[:, :3, 3], -poses[:, :3, 2]
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 5, rtol=1e-6)
    np.testing.assert_allclose(places + 5 * looks, np.zeros((8, 3)), atol=1e-5)
    azimuth = np.unwrap(np.arctan2(places[:, 1], places[:, 0]))
    np.testing.assert_allclose(np.diff(azimuth), 2 * np.pi / 8, rtol=1e-5)
    np.testing.assert_allclose(azimuth[0], np.pi / 2, rtol=1e-5)  # where the camera stood


def test_each_frame_shows_the_field_of_its_step_from_its_pose():
    """A grey p fitted to s by gradient descent on (p - s)^2 with rate a is p_k = s + (1 - 2a)^k (p_0 - s)."""
    told, start, support, rate = [0, 0, 1, 3, 3], 1.0, 0.2, 0.25

    def loss(params, data, key):
        return jnp.square(params - data)

    def render(params, pose, focal):
        return jnp.full((2, 2, 1), params + pose[0, 3] * focal)

    film = turntable.make_film(
        loss, optax.sgd(rate), render, lambda params, item: jnp.full((2, 2, 1), params), lambda item: item, told
    )
    poses = jnp.tile(jnp.eye(4), (5, 1, 1)).at[:, 0, 3].set(jnp.arange(5.0))
    made = film(jnp.array(start), jnp.array(support), jnp.full((2, 2, 1), 0.5), poses, 10.0, jax.random.key(0))
    reached = support + (1 - 2 * rate) ** np.array(told) * (start - support)
    np.testing.assert_allclose(made.rgb[:, 0, 1, 0], reached + 10 * np.arange(5), rtol=1e-5)
    np.testing.assert_allclose(made.psnr, -10 * np.log10((reached - 0.5) ** 2), rtol=1e-4)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Standard fades from black to white, learned from black to red."""
    along = np.linspace(0, 1, 6, dtype=np.float32)[:, None, None, None]
    white, red = np.ones((6, 4, 8, 3), np.float32) * along, np.ones((6, 4, 8, 3), np.float32) * along * (1, 0, 0)
    psnr = np.linspace(5, 25, 6)
    given = np.zeros((4, 8, 1), np.float32)  # grey, and twice as wide as high
    return films.compose({"standard": Film(white, psnr), "learned": Film(red, psnr)}, given, [0, 1, 2, 4, 4, 4])


def test_panels_stand_side_by_side(frames):
    assert frames.dtype == np.uint8 and frames.shape[0] == 6
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0  # for video
    row = films.HEADER + films.PANEL // 2
    middles = [films.MARGIN + films.PANEL // 2 + place * (films.PANEL + films.MARGIN) for place in range(3)]
    assert [tuple(frames[-1, row, column]) for column in middles] == [(0, 0, 0), (255, 255, 255), (255, 0, 0)]
    assert frames[0, row, middles].max() == 0
    for before, after in itertools.pairwise(frames[3:]):
        assert np.any(before != after)  # the bar goes on where the field is done


def test_panels_have_the_aspect_of_the_views(frames):
    column = slice(films.MARGIN + 2, films.MARGIN + films.PANEL - 2)
    panel = frames[0, films.HEADER + 1 : films.HEADER + films.PANEL - 1, column]
    given = np.flatnonzero(np.all(panel == 0, axis=(1, 2)))  # black, and white above and below
    assert len(given) == pytest.approx(films.PANEL / 2, abs=2)
    assert np.all(panel[: given[0] - 1] == 255) and np.all(panel[given[-1] + 2 :] == 255)


def test_the_bar_tells_its_frame(frames):
    """It grows by the same from frame to frame, although the steps do not; what is right of it is not looked at."""
    bar = frames[:, films.HEADER + films.PANEL + 42, films.MARGIN + 240 : films.MARGIN + 540, 0]
    filled = (bar == 0x44).sum(axis=1)
    assert np.ptp(np.diff(filled[:4])) <= 1 and filled[-1] == 300


def test_a_field_that_diverged_is_grey():
    film = Film(np.full((1, 2, 2, 3), np.nan), np.array([np.nan]))
    (frame,) = films.compose({"learned": film}, np.zeros((2, 2, 3)), [3])
    place = films.HEADER + films.PANEL // 2, films.MARGIN + (films.PANEL + films.MARGIN) + films.PANEL // 2
    assert frame[place].tolist() == [230, 230, 230]


def test_a_gif_has_all_frames_loops_and_keeps_white(frames, tmp_path):
    films.write_gif(tmp_path / "new" / "film.gif", frames, seconds=1.2)
    with Image.open(tmp_path / "new" / "film.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0 and gif.size == frames.shape[2:0:-1]
        durations = []
        for index in range(6):
            gif.seek(index)
            durations.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert tuple(shown[0, 0]) == (255, 255, 255)
            assert np.abs(shown - frames[index]).mean() < 2
    assert sum(durations) == 1200


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs the extra video")
def test_a_video_has_all_frames(frames, tmp_path):
    from imageio_ffmpeg import get_ffmpeg_exe

    path = tmp_path / "film.mp4"
    assert films.write_mp4(path, frames, seconds=1.0)
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    assert read.size == frames.size
    assert np.abs(read.reshape(frames.shape).astype(int) - frames).mean() < 6


def test_without_the_extra_there_is_no_video(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not films.write_mp4(tmp_path / "film.mp4", frames, seconds=1.0)
    assert not list(tmp_path.iterdir())


def test_frames_are_small_on_a_cpu():
    assert turntable.film_size(128, 256) == (32, 64)
    assert turntable.film_size(40, 20) == (40, 20)

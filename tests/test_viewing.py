"""What a live viewer decides: cameras, picture sizes, sessions, and who overtakes whom."""

import threading

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from viser import transforms

from jaxmeta.cameras import orbit_pose, pixel_rays
from jaxmeta.viewer import pictures, sessions
from jaxmeta.viewer.pictures import Camera, Picture
from jaxmeta.viewer.sessions import Choice, Fit, Inbox, Session


def window_directions(pose: np.ndarray, focal: float, height: int, width: int) -> np.ndarray:
    row, column = jnp.indices((height, width))
    poses = jnp.broadcast_to(jnp.asarray(pose, jnp.float32), (height, width, 4, 4))
    return np.asarray(pixel_rays(row, column, poses, jnp.float32(focal), height=height, width=width).directions)


def tiled_directions(camera: Camera, side: int, height: int, width: int) -> np.ndarray:
    def tile(row, column):
        pose = pictures.tile_pose(camera, row, column, side, height=height, width=width)
        return window_directions(pose, height / 2, height, width)

    rows = [np.concatenate([tile(row, column) for column in range(side)], axis=1) for row in range(side)]
    return np.concatenate(rows, axis=0)


def test_opencv_looks_along_z_with_y_down():
    # The unit quaternion: right is x, up is -y, and the camera looks along z, which is minus the third column.
    pose = pictures.pose_from_opencv(np.array([1.0, 0, 0, 0]), np.array([1.0, 2, 3]))
    np.testing.assert_array_equal(pose, [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]])


def test_a_quarter_turn_about_z_takes_x_to_y():
    half = np.sqrt(0.5)
    pose = pictures.pose_from_opencv(np.array([half, 0, 0, half]), np.zeros(3))
    np.testing.assert_allclose(pose[:3, 0], [0, 1, 0], atol=1e-12)


@given(st.floats(-3, 3), st.floats(-1.4, 1.4), st.floats(0.5, 9))
def test_a_pose_comes_back_from_viser(azimuth, elevation, radius):
    pose = orbit_pose(azimuth, elevation, radius)
    wxyz = transforms.SO3.from_matrix(pose[:3, :3] * [1, -1, -1]).wxyz
    np.testing.assert_allclose(pictures.pose_from_opencv(wxyz, pose[:3, 3]), pose, atol=1e-9)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_tiles_see_what_the_window_sees(side):
    height, width = 4, 6
    camera = Camera(orbit_pose(0.4, 0.3, 4.0), fov=0.7, aspect=width / height)
    focal = side * height / 2 / np.tan(0.35)
    wanted = window_directions(camera.pose, focal, side * height, side * width)
    np.testing.assert_allclose(tiled_directions(camera, side, height, width), wanted, atol=1e-6)


def test_pixels_stretch_with_the_window():
    # fov 90 degrees: the edges lie at tan 45 = 1 above and below, at the aspect, 3, left and right. The middle of the
    # first of 2 x 2 pixels is halfway: 1.5 to the left and 0.5 up.
    camera = Camera(np.eye(4), fov=np.pi / 2, aspect=3.0)
    direction = tiled_directions(camera, 2, 1, 1)[0, 0]
    np.testing.assert_allclose(direction / -direction[2], [-1.5, 0.5, -1], atol=1e-6)


@pytest.mark.parametrize(
    ("seconds_per_tile", "finest", "side"),
    [(0.2, 8, 1), (9.0, 8, 1), (0.05, 8, 2), (0.049, 8, 2), (0.0125, 8, 4), (1e-9, 8, 8), (1e-9, 1, 1)],
)
def test_a_moving_picture_is_as_fine_as_its_time_allows(seconds_per_tile, finest, side):
    assert pictures.moving_side(seconds_per_tile, 0.2, finest) == side


def test_a_resting_picture_gets_all_samples_then_more_tiles():
    camera = Camera(np.eye(4), 1.0, 1.0)
    assert pictures.finer({}, 0.1, 8) is None
    assert pictures.finer({"a": Picture(camera, 2, sharp=False)}, 0.1, 8) == ("a", 2)
    assert pictures.finer({"a": Picture(camera, 2, sharp=True)}, 0.1, 8) == ("a", 4)
    assert pictures.finer({"a": Picture(camera, 8, sharp=True)}, 0.1, 8) is None
    # 8 * 8 tiles of half a second take 32 s.
    assert pictures.finer({"a": Picture(camera, 4, sharp=True)}, 0.5, 8) is None
    assert pictures.finer({"a": Picture(camera, 4, True), "b": Picture(camera, 1, True)}, 0.1, 8) == ("b", 2)


def test_pictures_follow_cameras_and_fields():
    one, two = Camera(np.eye(4), 1.0, 1.0), Camera(np.eye(4), 0.5, 1.0)
    shown = pictures.looked({}, {"a": one, "b": one}, changed=False)
    assert pictures.stale(shown) == ["a", "b"]
    shown = {browser: picture._replace(side=4, sharp=True) for browser, picture in shown.items()}
    assert pictures.looked(shown, {}, changed=False) == shown
    assert pictures.looked(shown, {"a": two, "b": None}, changed=False) == {"a": Picture(two)}
    assert pictures.stale(pictures.looked(shown, {}, changed=True)) == ["a", "b"]


FITS = {"learned": Fit(jnp.ones(1), ()), "standard": Fit(jnp.zeros(1), ())}


def scored(session: Session, times: int) -> Session:
    for _ in range(times):
        session = sessions.advanced(session, FITS, {"learned": 20.0, "standard": 10.0})
    return session


def test_scores_count_the_steps():
    session = Session(Choice(0))
    assert session.step == 0
    session = scored(session, 1)
    assert session.step == 0
    session = scored(sessions.adapt(session, 5), 2)
    assert (session.step, session.goal) == (2, 5)
    assert sessions.pause(session).goal == 2
    assert sessions.adapt(sessions.pause(session), 5).goal == 7
    assert session.psnr == {"learned": (20.0,) * 3, "standard": (10.0,) * 3}


def test_other_views_begin_anew_and_another_picture_does_not():
    session = sessions.adapt(scored(Session(Choice(0)), 3), 5)
    shown = sessions.choose(session, shown="standard")
    assert (shown.step, shown.goal) == (2, 7) and shown.fits is FITS
    for changes in ({"scene": 1}, {"support": (1, 2)}):
        other = sessions.choose(shown, **changes)
        assert other == Session(shown.choice._replace(**changes))
    assert sessions.choose(session, scene=0).fits is FITS
    assert sessions.reset(shown) == Session(shown.choice)


def test_support_is_read_from_text():
    assert sessions.parse_support("3, 0;12 3", 13) == (0, 3, 12)
    for text, num_views, problem in [
        ("", 9, "give 1 to 6"),
        ("one", 9, "give 1 to 6"),
        ("0 1 2 3 4 5 6", 9, "give 1 to 6"),
        ("0 1", 2, "give 1 to 1"),
        ("9", 9, "from 0 to 8"),
    ]:
        with pytest.raises(ValueError, match=problem):
            sessions.parse_support(text, num_views)


def test_up_to_six_support_views_weigh_the_same():
    for count in range(1, sessions.MAX_SUPPORT + 1):
        assert len(set(np.bincount(np.resize(np.arange(count), sessions.SUPPORT_SLOTS)))) == 1


def test_held_out_views_are_spread_and_never_support():
    assert sessions.held_out((0,), 9, 4) == (1, 3, 6, 8)
    assert sessions.held_out((0, 1), 3, 4) == (2, 2, 2, 2)


def test_a_late_camera_takes_the_place_of_an_earlier_one_and_changes_keep_their_order():
    inbox = Inbox()
    assert not inbox.waiting()
    assert inbox.take(0) == ([], {})
    cameras = [Camera(np.eye(4), fov, 1.0) for fov in (1.0, 2.0, 3.0)]
    for camera in cameras:
        inbox.look("a", camera)
    inbox.look("b", None)
    inbox.change(sessions.pause)
    inbox.change(sessions.reset)
    assert inbox.waiting()
    assert inbox.take(None) == ([sessions.pause, sessions.reset], {"a": cameras[-1], "b": None})
    assert not inbox.waiting()


def test_a_post_from_another_thread_ends_the_wait():
    inbox = Inbox()
    posting = threading.Timer(0.05, inbox.change, [sessions.reset])
    posting.start()
    assert inbox.take(None)[0] == [sessions.reset]
    posting.join()

"""The live viewer as a user meets it: in headless Chromium, at a port that is taken, and until Ctrl-C."""

import io
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import PROJECT, Commands, ended, write_run
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.errors import InputError
from jaxmeta.rendering import Sampling
from jaxmeta.viewer import __main__ as command
from jaxmeta.viewer import page, sessions
from jaxmeta.viewer.sessions import Choice, Session

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A viewer of a tiny run, its address and its run."""
    folder = tmp_path_factory.mktemp("viewer")
    run = write_run(folder)
    words = [sys.executable, "-m", "jaxmeta.viewer", str(run), "--split", "train", "--port", "0"]
    environment = Commands(folder / "commands").environment()
    process = subprocess.Popen(
        words, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        told = [process.stdout.readline() for _ in range(2)]
        assert told[0] == "compiling\n", process.stderr.read()
        assert told[1].startswith("3 scenes of 'train' at http://127.0.0.1:")
        yield process, told[1].split()[5].rstrip(";"), run
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def browser(served) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        shown = chromium.new_page(viewport={"width": 700, "height": 400})
        shown.set_default_timeout(60_000)
        shown.goto(served[1])
        yield shown
        chromium.close()


def picture(browser: Page) -> np.ndarray:
    """The pixels about the middle of what the field looks like."""
    shot = browser.screenshot(clip={"x": 40, "y": 150, "width": 240, "height": 200})
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float)


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(120):
        if condition():
            return
        time.sleep(0.25)
    raise AssertionError("it never came")


def differs(browser: Page, before: np.ndarray) -> bool:
    return bool(np.abs(picture(browser) - before).mean() > 1)


def test_a_page_loads_a_frame_arrives_and_controls_change_it(browser):
    expect(browser.get_by_text("step 0", exact=True)).to_be_visible(timeout=60_000)
    # Before the first frame the window is white; the standard field is a grey fog.
    eventually(lambda: 30 < picture(browser).mean() < 225)
    learned = picture(browser)
    browser.get_by_role("textbox", name="initialisation").or_(browser.get_by_label("initialisation")).first.click()
    browser.get_by_role("option", name="standard").click()
    eventually(lambda: differs(browser, learned))


def test_adapt_counts_the_steps(browser):
    browser.get_by_role("textbox").last.fill("3")
    browser.get_by_role("textbox").last.press("Enter")
    browser.get_by_role("button", name="Adapt").click()
    expect(browser.get_by_text("step 3", exact=True)).to_be_visible(timeout=60_000)
    browser.get_by_role("button", name="Reset").click()
    expect(browser.get_by_text("step 0", exact=True)).to_be_visible(timeout=60_000)


def test_support_views_that_are_not_there_are_told(browser):
    browser.get_by_role("textbox").first.fill("1, 3")
    expect(browser.get_by_text("views are numbered from 0 to 2")).to_be_visible()
    browser.get_by_role("textbox").first.fill("1, 2")
    expect(browser.get_by_text("views are numbered from 0 to 2")).to_be_hidden()


def test_the_mouse_orbits(browser):
    before = picture(browser)
    browser.mouse.move(100, 200)
    browser.mouse.down()
    browser.mouse.move(220, 240, steps=5)
    browser.mouse.up()
    eventually(lambda: differs(browser, before))


def test_n7_nobody_else_reaches_it(served):
    port = int(served[1].rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=30).close()
    with pytest.raises(OSError):  # at another address of this machine, where a server for everybody would answer
        socket.create_connection(("127.0.0.2", port), timeout=30).close()


def test_a_port_that_is_taken_is_told_before_anything_else(served):
    _, address, run = served
    words = [sys.executable, "-m", "jaxmeta.viewer", str(run), "--port", address.rpartition(":")[2]]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    ended(done, 2, "of 127.0.0.1 cannot be used: ")
    assert not done.stdout


def test_ctrl_c_ends_it(served):
    process, *_ = served
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("ended\n", "")
    assert process.returncode == 0


def test_ports_and_hosts_that_cannot_be_used():
    page.check_port("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127\.0\.0\.1 .*give another --port"):
            page.check_port("127.0.0.1", port)
    page.check_port("127.0.0.1", port)
    with pytest.raises(InputError, match=r"port 0 of 203\.0\.113\.1 cannot be used: Cannot assign requested"):
        page.check_port("203.0.113.1", 0)  # of no machine: RFC 5737
    with pytest.raises(InputError, match="--port 70000 must be 0 to 65535"):
        page.check_port("127.0.0.1", 70_000)


def test_a_camera_begins_at_the_first_view_and_stays_where_rays_reach():
    pose = orbit_pose(0.2, 0.3, 4.0).astype(np.float32)
    views = Views(np.zeros((1, 1, 20, 30, 4), np.uint8), pose[None, None], np.full(1, 10, np.float32))
    start = command.camera_start(views, Sampling(near=2.0, far=7.0))
    np.testing.assert_array_equal(start.pose, pose)
    # 20 rows at a focal length of 10: 45 degrees up and down. Halfway from the camera's distance to each end: 3, 5.5.
    np.testing.assert_allclose([start.fov, start.nearest, start.farthest], [np.pi / 2, 3, 5.5], rtol=1e-6)


def test_the_status_in_words():
    session = Session(Choice(0))
    assert page.status_text(session) == "**beginning**"
    session = session._replace(psnr={"learned": (17.0, 20.123), "standard": (9.0, 10.0)})
    assert page.status_text(session) == (
        "**step 1** · estimated PSNR of held-out views: learned 20.1 dB, standard 10.0 dB"
    )
    assert page.status_text(sessions.adapt(session, 4)).startswith("**adapting, step 1 of 5** · ")

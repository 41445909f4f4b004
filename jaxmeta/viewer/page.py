"""The live viewer's page in a browser, made with viser: controls, curves and one picture for each browser.

Its callbacks run in viser's threads and only post to an inbox.
"""

import contextlib
import io
import logging
import socket
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import viser
from jaxtyping import UInt8

from jaxmeta.errors import InputError
from jaxmeta.viewer import pictures, sessions
from jaxmeta.viewer.loop import Page
from jaxmeta.viewer.pictures import Camera, Start
from jaxmeta.viewer.sessions import Inbox, Session

_COLOURS = {"learned": "#1f77b4", "standard": "#ff7f0e"}


def check_port(host: str, port: int) -> None:
    """Makes sure that a server can listen there; viser itself would take the next port in silence.

    Raises:
      InputError: it cannot.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} must be 0 to 65535")
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while")[0]
        raise InputError(f"port {port} of {host} cannot be used: {problem}; give another --port or --host") from error


@contextmanager
def open_page(
    host: str, port: int, inbox: Inbox, *, ids: Sequence[str], num_views: int, start: Start
) -> Iterator[tuple[Page, str]]:
    """Gives a page that is served, and its address.

    Args:
      host: to listen on.
      port: to listen on; 0 for any.
      inbox: gets what browsers ask for.
      ids: of the scenes to choose from.
      num_views: of a scene.
      start: of a browser's camera.

    Raises:
      InputError: the port is taken.
    """
    check_port(host, port)
    # Who connects and leaves without a word, as a browser may, is no error that a traceback should tell.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, label="jaxmeta", verbose=False)
    try:
        if port not in (0, server.get_port()):
            raise InputError(f"port {port} of {host} cannot be used: it was taken just now; give another --port")
        _follow_cameras(server, inbox, start)
        yield _controls(server, inbox, ids, num_views), f"http://{host}:{server.get_port()}"
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def _follow_cameras(server: viser.ViserServer, inbox: Inbox, start: Start) -> None:
    server.initial_camera.position = start.pose[:3, 3]
    server.initial_camera.look_at = np.zeros(3)
    server.initial_camera.fov = start.fov

    def post(client: viser.ClientHandle) -> None:
        seen = client.camera
        pose = pictures.pose_from_opencv(seen.wxyz, seen.position)
        inbox.look(client.client_id, Camera(pose, seen.fov, seen.aspect))

    @server.on_client_connect
    def _(client: viser.ClientHandle) -> None:
        client.camera.min_orbit_distance = start.nearest
        client.camera.max_orbit_distance = start.farthest
        client.camera.on_update(lambda _: post(client))
        post(client)

    @server.on_client_disconnect
    def _(client: viser.ClientHandle) -> None:
        inbox.look(client.client_id, None)


def _controls(server: viser.ViserServer, inbox: Inbox, ids: Sequence[str], num_views: int) -> Page:
    gui = server.gui
    gui.configure_theme(control_layout="fixed", show_logo=False, show_share_button=False)
    status = gui.add_markdown("")
    scene = gui.add_dropdown("scene", tuple(ids))
    support = gui.add_text("support views", "0", hint=f"1 to {sessions.MAX_SUPPORT} numbers below {num_views}")
    problem = gui.add_markdown("", visible=False)
    shown = gui.add_dropdown("initialisation", tuple(_COLOURS), hint="which fit the picture shows")
    steps = gui.add_slider("steps", min=1, max=1000, step=1, initial_value=100, hint="of gradient descent")
    buttons = [(gui.add_button(name), name) for name in ("Adapt", "Pause", "Reset")]
    seen = gui.add_image(np.full((1, 1, 3), 255, np.uint8), label="support views")
    curves = gui.add_uplot(
        (np.zeros(1), *[np.full(1, np.nan) for _ in _COLOURS]),
        ({"label": "step"}, *[{"label": name, "stroke": colour, "width": 2} for name, colour in _COLOURS.items()]),
        title="estimated PSNR of held-out views (dB)",
        scales={"x": {"time": False}},
        aspect=1.4,
    )
    changes = {"Adapt": lambda session: sessions.adapt(session, steps.value), "Pause": sessions.pause}
    for button, name in buttons:
        button.on_click(lambda _, name=name: inbox.change(changes.get(name, sessions.reset)))
    scene.on_update(lambda _: inbox.change(partial(sessions.choose, scene=list(ids).index(scene.value))))
    shown.on_update(lambda _: inbox.change(partial(sessions.choose, shown=shown.value)))

    @support.on_update
    def _(_: object) -> None:
        try:
            views = sessions.parse_support(support.value, num_views)
        except ValueError as error:
            problem.content, problem.visible = f"**{error}**", True
        else:
            problem.visible = False
            inbox.change(partial(sessions.choose, support=views))

    def show_session(session: Session) -> None:
        status.content = status_text(session)
        values = [session.psnr.get(name, (np.nan,)) for name in _COLOURS]
        curves.data = (np.arange(len(values[0]), dtype=float), *map(np.asarray, values))

    def show_picture(browser: Hashable, image: UInt8[np.ndarray, "height width 3"]) -> None:
        for client_id, client in server.get_clients().items():
            if client_id == browser:
                client.scene.set_background_image(image, format="jpeg", jpeg_quality=90)

    def show_support(images: UInt8[np.ndarray, "views height width 3"]) -> None:
        seen.image = np.concatenate(list(images), axis=1)

    return Page(show_picture, show_session, show_support)


def status_text(session: Session) -> str:
    """Returns in words, as markdown, how far a session is."""
    scores = ", ".join(f"{name} {values[-1]:.1f} dB" for name, values in session.psnr.items())
    what = f"adapting, step {session.step} of {session.goal}" if session.step < session.goal else f"step {session.step}"
    return f"**{what}** · estimated PSNR of held-out views: {scores}" if scores else "**beginning**"

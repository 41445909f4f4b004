"""Films a field while it adapts: the camera goes once around, the initialisations stand side by side.

One compiled function adapts and renders a whole film, so that every initialisation costs one call.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.evaluation import Predict, Target, psnr
from jaxmeta.figures import Picture
from jaxmeta.films import PANEL, Film, compose, write_gif, write_mp4
from jaxmeta.gallery import PAIR, Exhibition, item, num_items, steps
from jaxmeta.metalearning import LossFn, Params, adapt_in_stages

ADAPTING = 0.6
"""The share of the film in which the field adapts; the rest shows the result."""
CPU_PIXELS = 64
"""So large are frames at most on a CPU, along their longer side."""

FilmScene = Callable[..., Film]
"""`(params, support, item, poses, focal, key) -> Film`: adapts to the support, tells the PSNR of the item."""


def frame_steps(num_frames: int, num_steps: int) -> list[int]:
    """Returns how many inner steps lie behind each frame: quick to grow at the end, as the first steps matter most."""
    along = np.minimum(np.arange(num_frames) / max(round(ADAPTING * (num_frames - 1)), 1), 1)
    return np.round((1.0 + num_steps) ** along - 1).astype(int).tolist()


def orbit_poses(
    pose: Float[Any, "4 4"], num_frames: int, *, elevation: float = 0.35
) -> Float[np.ndarray, "frames 4 4"]:
    """Returns poses once around the origin, from the side and at the distance of a camera.

    Args:
      pose: of the camera.
      num_frames: how many; the one after the last would be the first again.
      elevation: above the xy plane, in radians.
    """
    place = np.asarray(pose)[:3, 3]
    start, radius = float(np.arctan2(place[1], place[0])), float(np.linalg.norm(place))
    turn = 2 * np.pi * np.arange(num_frames) / num_frames
    return np.stack([orbit_pose(start + angle, elevation, radius) for angle in turn.tolist()]).astype(np.float32)


def make_film(
    loss_fn: LossFn,
    inner_optimiser: optax.GradientTransformation,
    render: Callable[[Params, Any, Any], Float[Array, "height width channels"]],
    predict: Predict,
    target: Target,
    told: Sequence[int],
) -> FilmScene:
    """Returns a compiled function that films the adaptation of one scene.

    Args:
      loss_fn: of the support.
      inner_optimiser: of the adaptation.
      render: `(params, pose, focal) -> image` of a frame.
      predict: `(params, item) -> image` of the held-out item that tells the PSNR.
      target: what that image should be.
      told: how many steps lie behind each frame, from `frame_steps`.
    """
    stages, stage_of_frame = np.unique(told, return_inverse=True)

    def film(
        params: Params, support: Any, place: Any, poses: Float[Any, "frames 4 4"], focal: Float[Any, ""], key: Any
    ) -> Film:
        keys = jax.random.split(key, max(int(stages[-1]), 1))
        adapted = adapt_in_stages(loss_fn, inner_optimiser, params, support, keys, stages.tolist())
        wanted = target(place)
        scores = jax.lax.map(lambda reached: psnr(predict(reached, place), wanted), adapted)

        def frame(of: tuple[Int[Array, ""], Float[Array, "4 4"]]) -> Float[Array, "height width channels"]:
            return render(jax.tree.map(lambda leaf: leaf[of[0]], adapted), of[1], focal)

        return Film(jax.lax.map(frame, (jnp.asarray(stage_of_frame), poses)), scores[stage_of_frame])

    return jax.jit(film)


def film_size(height: int, width: int) -> tuple[int, int]:
    """Returns the height and width of a film's frames: like the views, but small enough to be made in seconds."""
    scale = min(1.0, (CPU_PIXELS if jax.default_backend() == "cpu" else PANEL) / max(height, width))
    return max(round(scale * height), 1), max(round(scale * width), 1)


def write_turntable(
    path: Path,
    shown: Exhibition,
    scene: int,
    make: Callable[[Sequence[int]], FilmScene],
    initialisations: Mapping[str, Params],
    *,
    seed: int,
    scale: float = 1.0,
    num_frames: int = 30,
    seconds: float = 5.0,
) -> Picture:
    """Films one scene from the standard and the learned initialisation; also as MP4 with the extra `video`.

    Args:
      path: the GIF file.
      shown: what there is; its items are of the class `View`.
      scene: which to film.
      make: gives the compiled function of `make_film` for the steps behind each frame.
      initialisations: by name.
      seed: of the draws.
      scale: the size of the frames as a share of that of the views.
      num_frames: of the film; each costs a rendering.
      seconds: that the camera takes to go around.
    """
    last, views = shown.stages[-1], jax.tree.map(lambda leaf: leaf[scene], shown.support)
    told = frame_steps(num_frames, last)
    film, key = make(told), jax.random.fold_in(jax.random.key(seed), scene)
    support = Views(views.image, views.pose, views.focal[0])
    place = item(shown.query, scene, num_items(shown.query) // 2)
    camera = orbit_poses(views.pose[0], num_frames), np.float32(scale * views.focal[0])
    films = {
        name: jax.device_get(film(initialisations[name], support, place, *camera, key))
        for name in PAIR
        if name in initialisations
    }
    frames = compose(films, np.asarray(shown.given(scene)), told)
    write_gif(path, frames, seconds=seconds)
    write_mp4(path.with_suffix(".mp4"), frames, seconds=seconds)
    takes = "both networks take the same" if len(films) > 1 else "the network takes"
    return Picture(
        path,
        "One scene, while it is fitted",
        f"The camera goes once around {shown.ids[scene]} while {takes} {steps(last)} on the support. "
        + ("It is the scene with the median PSNR. " if len(shown.ids) > 1 else "")
        + "The number below is the PSNR of a view that was not given.",
    )

"""Draws faces that nobody has: a class of images that needs no download, as alike and as varied as portraits are.

A face is a pure function of a PRNG key. Coordinates run from -1 to 1, x to the right and y down; every edge is as wide
as a pixel.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Layer = Float[Array, "height width"]
Colours = Float[Array, "height width 3"]
Colour = Float[Array, "3"]


@partial(jax.jit, static_argnames="size")
def draw_faces(keys: Array, *, size: int) -> UInt8[Array, "faces size size 3"]:
    """Returns a square picture of a face for each key."""
    return jax.lax.map(lambda key: jnp.round(255 * draw_face(key, size=size)).astype(jnp.uint8), keys)


def draw_face(key: Array, *, size: int) -> Float[Array, "size size 3"]:
    """Returns a picture of one face, with colours in [0, 1]."""
    across = (jnp.arange(size) + 0.5) * (2 / size) - 1
    y, x = jnp.meshgrid(across, across, indexing="ij")
    keys = jax.random.split(key, 6)
    image = _background(keys[0], x, y)
    # The head leans and lies a little off the middle; all its parts go with it.
    lean, right, down, scale = _between(keys[1], [(-0.12, 0.12), (-0.07, 0.07), (-0.05, 0.08), (0.92, 1.08)])
    x, y = (x - right) / scale, (y - down) / scale
    x, y = x * jnp.cos(lean) - y * jnp.sin(lean), x * jnp.sin(lean) + y * jnp.cos(lean)
    skin, hair = _skin(keys[2]), _hair_colour(keys[3])
    image = _head(keys[4], image, x, y, skin, hair)
    return jnp.clip(_features(keys[5], image, x, y, skin, hair), 0, 1)


def _background(key: Array, x: Layer, y: Layer) -> Colours:
    """Two colours that run into each other, with stripes or spots, and a shirt at the bottom."""
    colours_key, key = jax.random.split(key)
    one, other, shirt = jax.random.uniform(colours_key, (3, 3), minval=0.1, maxval=0.95)
    turn, frequency, strength, phase, width = _between(
        key, [(0, 3.14), (4, 14), (-0.12, 0.12), (0, 6.28), (0.55, 0.85)]
    )
    along, across = x * jnp.cos(turn) + y * jnp.sin(turn), y * jnp.cos(turn) - x * jnp.sin(turn)
    image = one + (other - one) * jnp.clip(0.5 + 0.45 * along, 0, 1)[..., None]
    image = image + strength * (jnp.sin(frequency * along + phase) * jnp.sin(0.6 * frequency * across))[..., None]
    stripes = 1 + 2 * strength * jnp.sign(jnp.sin(2.2 * frequency * y))
    return _paint(image, _ellipse(x, y, 0, 1.15, width, 0.5), shirt * stripes[..., None])


def _head(key: Array, image: Colours, x: Layer, y: Layer, skin: Colour, hair: Colour) -> Colours:
    """Hair behind, neck, ears, the face itself lit from one side, hair in front."""
    wide, tall, length, volume, line, part, strands, light, fringe = _between(
        key, [(0.4, 0.5), (0.55, 0.66), (-0.1, 0.55), (0.06, 0.18), (-0.48, -0.3), (-0.3, 0.3), (14, 34), (-1, 1),
              (0, 1)]
    )  # fmt: skip
    locks = hair * (1 + 0.25 * jnp.sin(strands * (x + 0.25 * jnp.sin(5 * y))))[..., None]
    image = _paint(image, _ellipse(x, y, 0, -0.1 + length / 2, wide + volume, tall + volume + length / 2), locks)
    image = _paint(image, _ellipse(x, y, 0, 0.7, 0.2, 0.4), 0.78 * skin)
    for side in (-1, 1):
        image = _paint(image, _ellipse(x, y, side * wide, 0.02, 0.07, 0.13), 0.85 * skin)
    shade = 1 + 0.22 * light * x - 0.18 * jnp.square(x / wide) - 0.1 * y
    face = _ellipse(x, y, 0, 0, wide, tall)
    image = _paint(image, face, skin * shade[..., None])
    hairline = line + 0.5 * fringe * jnp.square(x - part) + 0.02 * jnp.sin(strands * x)
    cap = _ellipse(x, y, 0, -0.1, wide + volume, tall + volume - 0.1) * _below(hairline - y, y)
    return _paint(image, cap, locks)


def _features(key: Array, image: Colours, x: Layer, y: Layer, skin: Colour, hair: Colour) -> Colours:
    """Eyes with brows, nose, mouth, and on some faces a beard or glasses."""
    eye_key, mouth_key, extra_key = jax.random.split(key, 3)
    beard, glasses, tint, rim = _between(extra_key, [(-1.5, 1), (-1.2, 1), (0, 0.5), (0.15, 0.21)])
    lower = _ellipse(x, y, 0, 0.36, 0.36, 0.28) * _below(y - 0.2 - 0.5 * jnp.square(x), y)
    stubble = hair * (1 + 0.3 * jnp.sin(60 * x) * jnp.sin(60 * y))[..., None]
    image = _paint(image, 0.85 * jnp.clip(beard, 0, 1) * lower, stubble)
    image = _mouth(mouth_key, image, x, y, skin)
    apart, height, openness, gaze, brow, arch, eye_hue = _between(
        eye_key, [(0.17, 0.23), (-0.14, -0.06), (0.04, 0.075), (-0.02, 0.02), (0.1, 0.16), (-0.25, 0.25), (0, 1)]
    )
    iris = jnp.array([0.35, 0.22, 0.1]) + eye_hue * jnp.array([-0.2, 0.2, 0.45])
    for side in (-1, 1):
        eye = _ellipse(x, y, side * apart, height, 0.095, openness)
        image = _paint(image, eye, jnp.array([0.95, 0.94, 0.92]))
        image = _paint(image, eye * _ellipse(x, y, side * apart + gaze, height, 0.05, 0.05), iris)
        image = _paint(image, eye * _ellipse(x, y, side * apart + gaze, height, 0.025, 0.025), jnp.full(3, 0.05))
        image = _paint(image, _ellipse(x, y, side * apart + gaze + 0.015, height - 0.015, 0.012, 0.012), jnp.ones(3))
        tilted = y + side * arch * (x - side * apart)
        image = _paint(image, _ellipse(x, tilted, side * apart, height - brow, 0.12, 0.022), 0.7 * hair)
        lens = _ellipse(x, y, side * apart, height, rim, rim * 0.85)
        ring = lens - _ellipse(x, y, side * apart, height, rim - 0.03, rim * 0.85 - 0.03)
        worn = (glasses > 0).astype(x.dtype)
        image = _paint(image, worn * (ring + tint * (lens - ring)), jnp.array([0.12, 0.1, 0.15]))
    for side in (-1, 1):
        image = _paint(image, 0.8 * _ellipse(x, y, side * 0.045, 0.17, 0.025, 0.016), 0.45 * skin)
    return _paint(image, 0.35 * _ellipse(x, y, 0.03, 0.08, 0.035, 0.11), 0.7 * skin)


def _mouth(key: Array, image: Colours, x: Layer, y: Layer, skin: Colour) -> Colours:
    """Lips that smile or not, open or not, and cheeks."""
    wide, smile, opened, thick, red = _between(
        key, [(0.11, 0.21), (-0.6, 1.4), (-0.03, 0.05), (0.035, 0.055), (0, 0.5)]
    )
    bent = y + smile * jnp.square(x)
    lips = skin * jnp.array([0.85, 0.5, 0.5]) + red * jnp.array([0.3, -0.1, -0.05])
    image = _paint(image, _ellipse(x, bent, 0, 0.33, wide, thick + jnp.maximum(opened, 0)), lips)
    teeth = (opened > 0.015) * _ellipse(x, bent, 0, 0.33, 0.8 * wide, jnp.maximum(opened, 0.015))
    image = _paint(image, teeth, jnp.array([0.93, 0.9, 0.86]))
    for side in (-1, 1):
        cheek = jnp.exp(-jnp.square((x - side * 0.27) / 0.1) - jnp.square((y - 0.15) / 0.08))
        image = _paint(image, 0.3 * red * cheek, jnp.array([0.9, 0.35, 0.3]))
    return image


def _skin(key: Array) -> Colour:
    depth, warmth = _between(key, [(0, 1), (-0.04, 0.04)])
    light, dark = jnp.array([0.97, 0.82, 0.72]), jnp.array([0.42, 0.27, 0.19])
    return light + (dark - light) * jnp.square(depth) + warmth * jnp.array([1.0, 0.0, -1.0])


def _hair_colour(key: Array) -> Colour:
    kinds = jnp.array([[0.08, 0.06, 0.05], [0.28, 0.16, 0.08], [0.75, 0.58, 0.3], [0.55, 0.22, 0.08], [0.6, 0.6, 0.6]])
    kind_key, tone_key = jax.random.split(key)
    return jax.random.choice(kind_key, kinds) * jax.random.uniform(tone_key, minval=0.75, maxval=1.25)


def _between(key: Array, ranges: list[tuple[float, float]]) -> Float[Array, "numbers"]:
    """Returns a uniform number from each range."""
    low, high = jnp.array(ranges).T
    return jax.random.uniform(key, (len(ranges),), minval=low, maxval=high)


def _paint(image: Colours, cover: Layer, colour: Array) -> Colours:
    """Lays a colour, or an image of colours, over the image as far as it covers."""
    return image + cover[..., None] * (colour - image)


def _ellipse(
    x: Layer, y: Layer, across: Array | float, down: Array | float, wide: Array | float, tall: Array | float
) -> Layer:
    """Returns 1 inside an ellipse, 0 outside, and between them about a pixel's width."""
    radius = jnp.hypot((x - across) / wide, (y - down) / tall)
    return _below((1 - radius) * jnp.minimum(wide, tall), y)


def _below(distance: Layer, y: Layer) -> Layer:
    """Returns 1 where a signed distance is positive by half a pixel, and 0 where it is negative by as much."""
    return jnp.clip(0.5 + distance * y.shape[0] / 2, 0, 1)

"""Turns a surface and camera poses into antialiased RGBA views, by casting rays with Embree.

Colour is diffuse and lit from fixed directions, so a point looks the same from everywhere: what a field without view
directions can learn. Layers of glass and leaves are composited front to back. Everything is summed with premultiplied
alpha and divided at the end, so neither the background's colour nor black bleeds into an outline.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from surfaces import Surface
from trimesh import Trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from jaxmeta.cameras import pixel_rays

AMBIENT, FROM_ABOVE = 0.48, 0.08
# Where each light comes from and how bright it is; together they leave white a shade short of a white background.
LIGHTS = ((np.array([0.45, -0.60, 0.66]), 0.40), (np.array([-0.70, 0.35, 0.62]), 0.20))
MAX_LAYERS = 16
STEP = 1e-4  # past a hit, in scene units
RAYS_AT_ONCE = 2**17


def render_views(
    surface: Surface, poses: Float[np.ndarray, "views 4 4"], *, camera_angle_x: float, size: int, supersampling: int
) -> UInt8[np.ndarray, "views size size 4"]:
    """Returns square views of a surface: RGBA, straight alpha, zero where nothing is.

    Args:
      surface: z up, about the origin.
      poses: camera to world.
      camera_angle_x: the field of view in radians.
      size: of a view, in pixels.
      supersampling: rays a side of a pixel.
    """
    corners = Trimesh(surface.corners.reshape(-1, 3), np.arange(3 * len(surface.corners)).reshape(-1, 3), process=False)
    caster = RayMeshIntersector(corners)
    directions = _camera_directions(size * supersampling, camera_angle_x)
    views = []
    for pose in poses:
        turned = np.einsum("rc,xc->rx", directions, pose[:3, :3])  # not @: BLAS threads would fight the other workers
        rgba = np.concatenate(
            [
                _traced(surface, caster, np.tile(pose[:3, 3], (len(batch), 1)), batch)
                for batch in np.array_split(turned, -(-len(turned) // RAYS_AT_ONCE))
            ]
        )
        pixels = rgba.reshape(size, supersampling, size, supersampling, 4).mean((1, 3))
        views.append(_straight(pixels))
    return np.stack(views)


def _camera_directions(size: int, camera_angle_x: float) -> Float[np.ndarray, "rays 3"]:
    rows, columns = np.divmod(np.arange(size * size), size)
    pose = jnp.broadcast_to(jnp.eye(4), (size * size, 4, 4))
    focal = jnp.float32(size / 2 / np.tan(camera_angle_x / 2))
    with jax.default_matmul_precision("highest"):
        rays = pixel_rays(jnp.asarray(rows), jnp.asarray(columns), pose, focal, height=size, width=size)
    return np.asarray(rays.directions, np.float64)


def _traced(
    surface: Surface,
    caster: RayMeshIntersector,
    origins: Float[np.ndarray, "rays 3"],
    directions: Float[np.ndarray, "rays 3"],
) -> Float[np.ndarray, "rays 4"]:
    """Returns each ray's premultiplied colour."""
    rgba = np.zeros((len(origins), 4))
    last_face = np.full(len(origins), -1)
    # Rays that pass by the sphere about the object meet nothing.
    nearest_squared = (origins**2).sum(-1) - (origins * directions).sum(-1) ** 2
    live = np.flatnonzero(nearest_squared <= 1.001 * (surface.corners**2).sum(-1).max())
    for _ in range(MAX_LAYERS):
        face = caster.intersects_first(origins[live], directions[live])
        live, face = live[face >= 0], face[face >= 0]
        if not len(live):
            break
        distance, shares = _hits(surface.corners[face], origins[live], directions[live])
        layer = _shaded(surface, face, shares, directions[live])
        layer[face == last_face[live]] = 0  # rounding met the same triangle again
        rgba[live] += (1 - rgba[live, 3:]) * layer
        last_face[live] = face
        origins[live] += (distance[:, None] + STEP) * directions[live]
        live = live[rgba[live, 3] < 1 - 1 / 512]
    return rgba


def _hits(
    corners: Float[np.ndarray, "rays 3 3"],
    origins: Float[np.ndarray, "rays 3"],
    directions: Float[np.ndarray, "rays 3"],
) -> tuple[Float[np.ndarray, "rays"], Float[np.ndarray, "rays 3"]]:
    """Returns how far each ray's triangle is, and its corners' shares in the point that is hit (Moeller-Trumbore)."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(directions, second)
    determinant = (first * across).sum(-1)
    determinant = np.where(np.abs(determinant) < 1e-15, 1e-15, determinant)
    offset = origins - corners[:, 0]
    b = (offset * across).sum(-1) / determinant
    around = np.cross(offset, first)
    c = (directions * around).sum(-1) / determinant
    shares = np.clip(np.stack([1 - b - c, b, c], -1), 0, 1)
    return (second * around).sum(-1) / determinant, shares / shares.sum(-1, keepdims=True)


def _shaded(
    surface: Surface,
    face: Int[np.ndarray, "rays"],
    shares: Float[np.ndarray, "rays 3"],
    directions: Float[np.ndarray, "rays 3"],
) -> Float[np.ndarray, "rays 4"]:
    """Returns the premultiplied, lit colour of points on faces."""
    normal, uv, rgba = (
        np.einsum("rc,rcx->rx", shares, leaf[face]) for leaf in (surface.normals, surface.uv, surface.rgba)
    )
    texel = np.empty_like(rgba)
    for index in np.unique(surface.texture[face]):
        wears = surface.texture[face] == index
        texel[wears] = _texels(surface.textures[index], uv[wears])
    rgb = texel[:, :3] * rgba[:, :3] * rgba[:, 3:] * _irradiance(normal, directions)[:, None]
    alpha = texel[:, 3:] * rgba[:, 3:]
    return np.concatenate([np.minimum(rgb, alpha), alpha], -1)


def _irradiance(
    normal: Float[np.ndarray, "rays 3"], directions: Float[np.ndarray, "rays 3"]
) -> Float[np.ndarray, "rays"]:
    """Returns the light that reaches the side of a surface that a ray comes from."""
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = normal * np.where((normal * directions).sum(-1, keepdims=True) > 0, -1, 1)
    light = AMBIENT + FROM_ABOVE * normal[:, 2]
    for direction, brightness in LIGHTS:
        light += brightness * np.maximum(np.einsum("rx,x->r", normal, direction / np.linalg.norm(direction)), 0)
    return light


def _texels(
    texture: Float[np.ndarray, "height width 4"], uv: Float[np.ndarray, "rays 2"]
) -> Float[np.ndarray, "rays 4"]:
    """Returns a texture's colour between its texels, repeated beyond its edges."""
    height, width = texture.shape[:2]
    if height == width == 1:
        return np.broadcast_to(texture[0, 0], (len(uv), 4))
    column, row = (uv[:, 0] % 1) * width - 0.5, ((1 - uv[:, 1]) % 1) * height - 0.5
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    right_share, lower_share = (column - left)[:, None], (row - top)[:, None]
    left, right, top, lower = left % width, (left + 1) % width, top % height, (top + 1) % height
    upper_texel = texture[top, left] * (1 - right_share) + texture[top, right] * right_share
    lower_texel = texture[lower, left] * (1 - right_share) + texture[lower, right] * right_share
    return upper_texel * (1 - lower_share) + lower_texel * lower_share


def _straight(rgba: Float[np.ndarray, "*shape 4"]) -> UInt8[np.ndarray, "*shape 4"]:
    alpha = np.round(rgba[..., 3:] * 255)
    rgb = np.where(alpha > 0, rgba[..., :3] / np.maximum(rgba[..., 3:], 1e-6), 0)
    return np.concatenate([np.round(np.clip(rgb, 0, 1) * 255), alpha], -1).astype(np.uint8)

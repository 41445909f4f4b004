"""Turns a mesh file into the triangles, colours and textures that `raycasting` shades.

Reads GLB, glTF, OBJ, PLY, OFF, STL and DAE through trimesh, with textures, vertex, face and material colours. Colours
are display values (sRGB) in [0, 1]; glTF's linear factors are converted. The object ends up in the scene's frame: z up,
the middle of its bounding box at the origin, its farthest corner at a given radius.
"""

import json
import re
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int
from PIL import Image
from trimesh.visual.color import to_rgba
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from jaxmeta.data.png import reject

Up = Literal["auto", "y", "z"]

PLAIN = 0.7  # the grey of a mesh without colours
MAX_TEXTURE_SIDE = 512
CREASE_COSINE = np.cos(np.radians(45))
Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])

# What a format says of its axes, or what most of its exporters do; COLLADA files say it themselves.
_UP_AXIS = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "z", ".off": "z", ".stl": "z"}
_DECODERS = {"KHR_draco_mesh_compression": "DracoPy"}
_UNREADABLE = {*_DECODERS, "EXT_meshopt_compression", "KHR_texture_basisu"}
_WHITE = np.ones((1, 1, 4), np.float32)


class Surface(NamedTuple):
    """Triangles and what colours them."""

    corners: Float[np.ndarray, "faces 3 3"]
    normals: Float[np.ndarray, "faces 3 3"]
    """Of unit length, at each corner; smooth, but not across an edge sharper than a crease."""
    uv: Float[np.ndarray, "faces 3 2"]
    """Where each corner lies on its texture: u to the right, v upwards, repeating every 1."""
    rgba: Float[np.ndarray, "faces 3 4"]
    """The colour at each corner, straight alpha; it multiplies the texture."""
    texture: Int[np.ndarray, "faces"]
    """Which of `textures` a face wears."""
    textures: tuple[Float[np.ndarray, "_ _ 4"], ...]
    """Premultiplied RGBA, the top row first."""


def load_surface(
    path: Path, *, radius: float, up: Up = "auto", rotation: Float[np.ndarray, "3 3"] | None = None
) -> Surface:
    """Returns the surface of a mesh file, centred, turned z up and scaled.

    Args:
      path: of the mesh; textures are read from where it says that they are.
      radius: of the sphere about the middle of the bounding box that just holds the object, in scene units.
      up: the file's upward axis; "auto" takes the format's convention: y for glTF and OBJ, z for PLY, OFF and STL, and
        what the file says for DAE.
      rotation: turns the object before its upward axis is taken.

    Raises:
      InputError: the file is broken, compressed in a way that cannot be read, or holds no triangles.
    """
    _refuse_compressed(path)
    surface = _joined(path, _parts(path))
    turn = np.eye(3) if rotation is None else rotation
    if _up_axis(path, up) == "y":
        turn = Y_UP_TO_Z_UP @ turn
    corners = surface.corners @ turn.T
    low, high = corners.min((0, 1)), corners.max((0, 1))
    corners = corners - (low + high) / 2
    extent = np.linalg.norm(corners, axis=-1).max()
    return surface._replace(corners=corners * (radius / extent), normals=surface.normals @ turn.T)


def _parts(path: Path) -> list[Surface]:
    linear = path.suffix.lower() in (".glb", ".gltf")
    try:
        scene = trimesh.load_scene(path, process=False)
        placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
        meshes = [(scene.geometry[name], transform) for transform, name in placed]
        with np.errstate(all="ignore"):  # what is not finite is refused by name
            return [
                _part(mesh, transform, linear=linear)
                for mesh, transform in meshes
                if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)
            ]
    except ModuleNotFoundError as error:
        reject(path, f"needs the package {error.name}: pip install 'jaxmeta[meshes]'")
    except Exception as error:  # a parser that meets a broken file may raise anything
        reject(path, f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}")


def _part(mesh: trimesh.Trimesh, transform: Float[np.ndarray, "4 4"], *, linear: bool) -> Surface:
    rgba, uv, texture = _appearance(mesh, linear=linear)
    corners = mesh.vertices[mesh.faces] @ transform[:3, :3].T + transform[:3, 3]
    if not np.isfinite(corners).all():
        raise ValueError("it has coordinates that are not finite")
    normals = mesh.vertex_normals[mesh.faces] @ np.linalg.pinv(transform[:3, :3])
    normals, is_sound = _creased(normals, corners)
    faces = np.zeros(int(is_sound.sum()), np.int64)
    return Surface(corners[is_sound], normals[is_sound], uv[is_sound], rgba[is_sound], faces, (texture,))


def _creased(
    normals: Float[np.ndarray, "faces 3 3"], corners: Float[np.ndarray, "faces 3 3"]
) -> tuple[Float[np.ndarray, "faces 3 3"], Bool[np.ndarray, "faces"]]:
    """Returns unit normals that agree with their faces to within a crease, and which faces have an area."""
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(flat, axis=-1, keepdims=True)
    flat = (flat / np.maximum(area, 1e-300))[:, None]
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-300)
    cosine = (normals * flat).sum(-1, keepdims=True)
    normals = np.where(np.abs(cosine) > CREASE_COSINE, normals * np.sign(cosine), flat)
    return normals, area[:, 0] > 0


def _joined(path: Path, parts: list[Surface]) -> Surface:
    if not sum(len(part.corners) for part in parts):
        reject(path, "holds no triangles; points, curves and empty meshes cannot be rendered")
    corners, normals, uv, rgba, _, textures = zip(*parts, strict=True)
    joined = Surface(
        corners=np.concatenate(corners),
        normals=np.concatenate(normals),
        uv=np.concatenate(uv),
        rgba=np.concatenate(rgba),
        texture=np.repeat(np.arange(len(parts)), [len(part.corners) for part in parts]),
        textures=tuple(texture for (texture,) in textures),
    )
    if not all(np.isfinite(array).all() for array in (joined.normals, joined.uv, joined.rgba)):
        reject(path, "has normals or colours that are not finite")
    return joined


# ---- colours ---------------------------------------------------------------------------------------------------------


def _appearance(
    mesh: trimesh.Trimesh, *, linear: bool
) -> tuple[Float[np.ndarray, "faces 3 4"], Float[np.ndarray, "faces 3 2"], Float[np.ndarray, "_ _ 4"]]:
    visual: Any = mesh.visual
    rgba = np.ones((len(mesh.faces), 3, 4))
    uv = np.zeros((len(mesh.faces), 3, 2))
    if visual.kind == "vertex":
        return rgba * _display(visual.vertex_colors[mesh.faces] / 255, linear=linear), uv, _WHITE
    if visual.kind == "face":
        return rgba * visual.face_colors[:, None] / 255, uv, _WHITE
    if visual.kind is None or visual.material is None:
        return rgba * (PLAIN, PLAIN, PLAIN, 1), uv, _WHITE
    factor, image = _material(visual.material, linear=linear)
    attributes = getattr(visual, "vertex_attributes", {})
    if len(attributes.get("color", ())) == len(mesh.vertices):
        rgba = rgba * _display(to_rgba(attributes["color"])[mesh.faces] / 255, linear=linear)
    if image is None or visual.uv is None or len(visual.uv) != len(mesh.vertices):
        return rgba * factor, uv, _WHITE
    cutoff = getattr(visual.material, "alphaCutoff", None) if _alpha_mode(visual.material) == "MASK" else None
    uv = np.nan_to_num(visual.uv[mesh.faces][..., :2])
    return rgba * factor, uv, _texture(image, opaque=_alpha_mode(visual.material) == "OPAQUE", cutoff=cutoff)


def _material(material: Any, *, linear: bool) -> tuple[Float[np.ndarray, "4"], Image.Image | None]:
    """Returns the colour that multiplies the texture, and the texture."""
    if isinstance(material, PBRMaterial):
        factor = np.ones(4) if material.baseColorFactor is None else material.baseColorFactor / 255
        if _alpha_mode(material) == "OPAQUE":
            factor = np.append(factor[:3], 1)
        return _display(factor, linear=linear), material.baseColorTexture
    if not isinstance(material, SimpleMaterial):
        return _display(material.main_color / 255, linear=linear), None
    alpha = _number(material.kwargs.get("d"), 1) * (1 - _number(material.kwargs.get("tr"), 0))
    # An image that comes from no file is trimesh's stand-in for a material that it did not find.
    image = material.image if material.image is not None and material.image.format else None
    # An OBJ's texture replaces its diffuse colour: exporters write any colour beside a texture, even black.
    has_colour = "kd" in material.kwargs and image is None
    rgb = material.diffuse[:3] / 255 if has_colour else np.full(3, PLAIN if image is None else 1.0)
    return np.append(rgb, np.clip(alpha, 0, 1)), image


def _alpha_mode(material: Any) -> str:
    """Returns what glTF calls the alpha mode; an OBJ's textures always blend."""
    return (material.alphaMode or "OPAQUE") if isinstance(material, PBRMaterial) else "BLEND"


def _texture(image: Image.Image, *, opaque: bool, cutoff: float | None) -> Float[np.ndarray, "_ _ 4"]:
    image = image.convert("RGBA")
    image.thumbnail((MAX_TEXTURE_SIDE, MAX_TEXTURE_SIDE))
    texels = np.asarray(image, np.float32) / 255
    rgb, alpha = texels[..., :3], texels[..., 3:]
    if opaque:
        alpha = np.ones_like(alpha)
    if cutoff is not None:
        alpha = (alpha >= cutoff).astype(np.float32)
    return np.concatenate([rgb * alpha, alpha], -1)


def _display(rgba: Float[np.ndarray, "*shape 4"], *, linear: bool) -> Float[np.ndarray, "*shape 4"]:
    """Returns colours as sRGB values; only linear ones change."""
    if not linear:
        return rgba
    rgb = rgba[..., :3]
    rgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * np.maximum(rgb, 0.0031308) ** (1 / 2.4) - 0.055)
    return np.concatenate([rgb, rgba[..., 3:]], -1)


def _number(words: list[str] | None, default: float) -> float:
    try:
        return float(words[-1]) if words else default
    except ValueError:
        return default


# ---- what a file says of itself --------------------------------------------------------------------------------------


def _up_axis(path: Path, up: Up) -> str:
    if up != "auto":
        return up
    suffix = path.suffix.lower()
    if suffix != ".dae":
        return _UP_AXIS[suffix]
    said = re.search(rb"<up_axis>\s*([XYZ])_UP", path.read_bytes())
    axis = said.group(1).decode().lower() if said else "y"
    if axis == "x":
        reject(path, "has the x axis up; pass --up y or --up z, or export it anew")
    return axis


def _refuse_compressed(path: Path) -> None:
    """Stops at a glTF whose geometry or textures trimesh would silently leave out."""
    header = _gltf_header(path)
    used = {*header.get("extensionsUsed", ()), *header.get("extensionsRequired", ())}
    for name in sorted(used & _UNREADABLE):
        decoder = _DECODERS.get(name)
        if decoder and find_spec(decoder):
            continue
        remedy = f"pip install {decoder}, or export it without compression" if decoder else "export it without"
        reject(path, f"is compressed with {name}; {remedy}")


def _gltf_header(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".glb", ".gltf"):
        return {}
    try:
        data = path.read_bytes()
        if suffix == ".glb":
            magic, _, _, length, _ = struct.unpack("<4sIIII", data[:20])
            if magic != b"glTF":
                reject(path, "is not a GLB file")
            data = data[20 : 20 + length]
        header = json.loads(data)
    except (OSError, ValueError, RecursionError, struct.error) as error:
        reject(path, f"cannot be read: {error}")
    return header if isinstance(header, dict) else reject(path, "is not a glTF file")

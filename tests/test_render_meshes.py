"""Meshes to views: where points land, which way is up, colours, outlines, splits, and what broken files do."""

import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import collada
import numpy as np
import pytest
import trimesh
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from raycasting import render_views
from render_meshes import (
    CAMERA_ANGLE_X,
    Options,
    find_models,
    group_name,
    main,
    sample_poses,
    scene_id,
    split_scenes,
    worker_map,
)
from surfaces import Y_UP_TO_Z_UP, load_surface

from jaxmeta.cameras import orbit_pose
from jaxmeta.data.scenes import NAME
from jaxmeta.data.shapenet import load_scene
from jaxmeta.data.splits import load_split
from jaxmeta.errors import InputError

# trimesh's glTF exporter leaves files for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SCRIPT = Path(__file__).parents[1] / "data_scripts" / "render_meshes.py"
Z_UP_TO_Y_UP = Y_UP_TO_Z_UP.T
ALONE = ("--val-fraction", "0", "--test-fraction", "0", "--workers", "1")
ABOVE = orbit_pose(-np.pi / 2, np.arcsin(0.9999), 4.03)  # image up is +y, image right is +x


def cube(centre: tuple[float, ...], side: float, rgb: tuple[int, ...] = (255, 255, 255)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box((side, side, side))
    mesh.apply_translation(centre)
    mesh.visual.vertex_colors = np.tile((*rgb, 255), (8, 1)).astype(np.uint8)
    return mesh


def quad(height: float = 0.0, **visual: object) -> trimesh.Trimesh:
    """A square of side 2 that looks up."""
    vertices = np.array([(-1, -1, height), (1, -1, height), (1, 1, height), (-1, 1, height)])
    return trimesh.Trimesh(vertices, [(0, 1, 2), (0, 2, 3)], process=False, **visual)


def from_above(path: Path, *, supersampling: int = 3, **options: object) -> np.ndarray:
    surface = load_surface(path, radius=2**0.5 * 0.7, **options)
    return render_views(surface, ABOVE[None], camera_angle_x=CAMERA_ANGLE_X, size=33, supersampling=supersampling)[0]


# ---- geometry --------------------------------------------------------------------------------------------------------

MARKS = {
    (255, 0, 0): (1, 0, 0),
    (0, 255, 255): (-1, 0, 0),
    (0, 255, 0): (0, 1, 0),
    (255, 0, 255): (0, -1, 0),
    (0, 0, 255): (0, 0, 1),
    (255, 255, 0): (0, 0, -1),
}


def test_point_lands_on_its_pixel(tmp_path):
    # Six small cubes on the axes; the bounding box is centred. The farthest corner is at (1.02, 0.02, 0.02).
    scale = 1.25 / np.linalg.norm((1.02, 0.02, 0.02))
    (tmp_path / "in").mkdir()
    trimesh.util.concatenate([cube(at, 0.04, rgb) for rgb, at in MARKS.items()]).export(tmp_path / "in/marks.ply")
    main([str(tmp_path / "in"), "--out", str(tmp_path), "--class-name", "mark", "--num-views", "6", *ALONE])
    views = load_scene(tmp_path / "mark" / "marks", num_views=6)
    errors = []
    for image, pose in zip(views.images, views.poses, strict=True):
        inwards = np.linalg.inv(pose.astype(np.float64))
        seen = {rgb: inwards[:3, :3] @ (np.array(at) * scale) + inwards[:3, 3] for rgb, at in MARKS.items()}
        pixels = {rgb: (64 + views.focal * x / -z, 64 - views.focal * y / -z) for rgb, (x, y, z) in seen.items()}
        for rgb, expected in pixels.items():
            others = [np.hypot(*np.subtract(expected, pixel)) for key, pixel in pixels.items() if key != rgb]
            if min(others) < 8:
                continue  # one cube hides another
            is_mark = ((image[..., :3] > 0) == (np.array(rgb) > 0)).all(-1) * image[..., 3].astype(float)
            rows, columns = np.mgrid[:128, :128] + 0.5
            found = (columns * is_mark).sum() / is_mark.sum(), (rows * is_mark).sum() / is_mark.sum()
            errors.append(np.hypot(*np.subtract(found, expected)))
    assert len(errors) > 25
    assert max(errors) < 0.5


@pytest.mark.parametrize("suffix", ["glb", "gltf", "obj", "ply", "off", "stl", "dae"])
def test_formats_agree_on_up(tmp_path, suffix):
    # A tall box with a small one at a side of its foot.
    mesh = trimesh.util.concatenate([cube((0, 0, 0.4 * i), 0.4) for i in range(4)] + [cube((0.4, 0.1, 0), 0.4)])
    reference = tmp_path / "reference.ply"
    mesh.export(reference)
    if suffix not in ("ply", "off", "stl"):
        mesh.apply_transform(trimesh.transformations.compose_matrix(angles=(-np.pi / 2, 0, 0)))
    path = tmp_path / f"mesh.{suffix}"
    mesh.export(path)
    poses = sample_poses(0, "scene", 2)
    how = {"camera_angle_x": CAMERA_ANGLE_X, "size": 32, "supersampling": 2}
    views, wanted = (
        render_views(load_surface(p, radius=1.2), poses, **how)[..., 3].astype(int) for p in (path, reference)
    )
    assert wanted.max() == 255
    # Rounding may move a ray past an edge here and there.
    assert np.abs(views - wanted).mean() < 0.5


def test_up_and_rotation_override_the_format(tmp_path):
    mesh = cube((0, 0, 0), 1)
    mesh.apply_scale((1, 2, 3))
    mesh.export(tmp_path / "box.ply")
    half = {}
    for name, options in {"auto": {}, "y": {"up": "y"}, "turned": {"rotation": Y_UP_TO_Z_UP, "up": "z"}}.items():
        half[name] = load_surface(tmp_path / "box.ply", radius=14**0.5 / 2, **options).corners.max((0, 1))
    np.testing.assert_allclose(half["auto"], (0.5, 1, 1.5), atol=1e-6)
    np.testing.assert_allclose(half["y"], (0.5, 1.5, 1), atol=1e-6)
    np.testing.assert_allclose(half["turned"], half["y"], atol=1e-6)


def test_dae_says_its_own_up_axis(tmp_path):
    mesh = cube((0, 0, 0), 1)
    mesh.apply_scale((1, 2, 3))
    mesh.export(tmp_path / "box.dae")
    text = (tmp_path / "box.dae").read_text()
    assert "Y_UP" in text
    tops = []
    for axis in ("Y_UP", "Z_UP"):
        (tmp_path / "box.dae").write_text(text.replace("Y_UP", axis))
        tops.append(load_surface(tmp_path / "box.dae", radius=14**0.5 / 2).corners[..., 2].max())
    np.testing.assert_allclose(tops, (1, 1.5), atol=1e-6)
    (tmp_path / "box.dae").write_text(text.replace("Y_UP", "X_UP"))
    with pytest.raises(InputError, match=r"box.dae has the x axis up; pass --up"):
        load_surface(tmp_path / "box.dae", radius=1)


def test_object_is_centred_and_fits(tmp_path):
    points = np.random.default_rng(0).uniform(-3, 9, (12, 3)) * (1, 5, 0.2)
    trimesh.Trimesh(points, np.arange(12).reshape(4, 3), process=False).export(tmp_path / "far.ply")
    corners = load_surface(tmp_path / "far.ply", radius=1.25).corners
    np.testing.assert_allclose(corners.min((0, 1)), -corners.max((0, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(corners, axis=-1).max(), 1.25)


def test_cameras_are_the_authors(tmp_path):
    poses = sample_poses(3, "scene", 200)
    positions = poses[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(positions, axis=-1), 4.03)
    sines = positions[:, 2] / 4.03
    assert sines.min() > 0
    assert abs(sines.mean() - 0.485) < 0.06  # uniform over the area, so uniform in the sine, up to 0.97
    np.testing.assert_array_equal(sample_poses(3, "scene", 5), poses[:5])
    assert not np.allclose(sample_poses(3, "other", 5), poses[:5])
    assert not np.allclose(sample_poses(4, "scene", 5), poses[:5])


# ---- colours ---------------------------------------------------------------------------------------------------------


def quadrants(path: Path, size: int = 64) -> Image.Image:
    """A texture: red, green above; blue, white below."""
    image = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    image[:half, :half], image[:half, half:] = (255, 0, 0), (0, 255, 0)
    image[half:, :half], image[half:, half:] = (0, 0, 255), (255, 255, 255)
    Image.fromarray(image).save(path)
    return Image.open(path)


def hues(image: np.ndarray) -> list[tuple[bool, ...]]:
    return [tuple(image[row, column, :3] > 60) for row in (12, 20) for column in (12, 20)]


QUADRANTS = [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
UV = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])


def test_texture_of_a_glb_lies_the_right_way_round(tmp_path):
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=quadrants(tmp_path / "t.png"))
    quad(visual=trimesh.visual.TextureVisuals(UV, material=material)).export(tmp_path / "quad.glb")
    assert hues(from_above(tmp_path / "quad.glb", up="z")) == QUADRANTS


@pytest.mark.parametrize(("shift", "size"), [(0, 64), (7, 64), (0, 4)])
def test_texture_of_an_obj_repeats_and_replaces_its_colour(tmp_path, shift, size):
    quadrants(tmp_path / "t.png", size)
    (tmp_path / "quad.mtl").write_text("newmtl m\nKd 0 0 0\nd 1.0\nmap_Kd t.png\n")
    uv = "".join(f"vt {u + shift} {v - shift}\n" for u, v in UV)
    vertices = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\n"
    (tmp_path / "quad.obj").write_text(f"mtllib quad.mtl\n{vertices}{uv}usemtl m\nf 1/1 2/2 3/3 4/4\n")
    assert hues(from_above(tmp_path / "quad.obj", up="z")) == QUADRANTS


def test_texture_of_a_ply(tmp_path):
    quadrants(tmp_path / "t.png")
    header = "ply\nformat ascii 1.0\ncomment TextureFile t.png\nelement vertex 4\n"
    header += "".join(f"property float {name}\n" for name in "xyzst")
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    rows = "".join(f"{x} {y} 0 {u} {v}\n" for (x, y, _), (u, v) in zip(quad().vertices, UV, strict=True))
    (tmp_path / "quad.ply").write_text(f"{header}{rows}4 0 1 2 3\n")
    assert hues(from_above(tmp_path / "quad.ply")) == QUADRANTS


def test_texture_of_a_dae(tmp_path):
    quadrants(tmp_path / "t.png")
    document = collada.Collada()
    image = collada.material.CImage("image", "t.png")
    surface = collada.material.Surface("surface", image)
    sampler = collada.material.Sampler2D("sampler", surface)
    diffuse = collada.material.Map(sampler, "UVSET0")
    effect = collada.material.Effect("effect", [surface, sampler], "lambert", diffuse=diffuse)
    material = collada.material.Material("material", "material", effect)
    points = collada.source.FloatSource("points", quad().vertices, ("X", "Y", "Z"))
    uv = collada.source.FloatSource("uv", UV.astype(float), ("S", "T"))
    geometry = collada.geometry.Geometry(document, "quad", "quad", [points, uv])
    inputs = collada.source.InputList()
    inputs.addInput(0, "VERTEX", "#points")
    inputs.addInput(0, "TEXCOORD", "#uv", set="0")
    geometry.primitives.append(geometry.createTriangleSet(quad().faces.ravel(), inputs, "worn"))
    worn = collada.scene.MaterialNode("worn", material, inputs=[("UVSET0", "TEXCOORD", "0")])
    node = collada.scene.Node("node", children=[collada.scene.GeometryNode(geometry, [worn])])
    document.images.append(image)
    document.effects.append(effect)
    document.materials.append(material)
    document.geometries.append(geometry)
    document.scene = collada.scene.Scene("scene", [node])
    document.scenes.append(document.scene)
    document.write(str(tmp_path / "quad.dae"))
    assert hues(from_above(tmp_path / "quad.dae", up="z")) == QUADRANTS


def test_large_texture_is_averaged_not_picked(tmp_path):
    # A chequerboard of single texels is grey from afar; reduced to 512 a side it has to be.
    texels = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texels).convert("RGB"))
    quad(visual=trimesh.visual.TextureVisuals(UV, material=material)).export(tmp_path / "quad.glb")
    rgb = from_above(tmp_path / "quad.glb", up="z")[10:23, 10:23, :3]
    assert np.ptp(rgb) < 12


@pytest.mark.parametrize(
    ("d", "alpha"), [("d 0.25", 64), ("Tr 0.75", 64), ("d 1.0", 255), ("", 255), ("d -halo 0.25", 64), ("d x", 255)]
)
def test_obj_colour_and_transparency(tmp_path, d, alpha):
    (tmp_path / "quad.mtl").write_text(f"newmtl m\nKd 0.2 0.4 0.1\n{d}\n")
    (tmp_path / "quad.obj").write_text("mtllib quad.mtl\nv -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nusemtl m\nf 1 2 3 4\n")
    pixel = from_above(tmp_path / "quad.obj", up="z")[16, 16].astype(int)
    assert abs(pixel[3] - alpha) <= 1
    np.testing.assert_allclose(pixel[:3] / pixel[1], (0.5, 1, 0.25), atol=0.03)


@pytest.mark.parametrize(("uv", "face"), [("", "1 2 3 4"), ("vt 0 0\n", "1/1 2/1 3/1 4/1")])
def test_obj_without_its_materials_is_grey(tmp_path, uv, face):
    vertices = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\n"
    (tmp_path / "quad.obj").write_text(f"mtllib nowhere.mtl\n{vertices}{uv}usemtl m\nf {face}\n")
    pixel = from_above(tmp_path / "quad.obj", up="z")[16, 16]
    assert pixel[0] == pixel[1] == pixel[2] > 120


def test_linear_factors_of_gltf_become_srgb(tmp_path):
    # 0.2140 linear is 0.5 in sRGB: the same picture as a PLY's vertex colour 0.5 (byte 128).
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[0.2140, 0.2140, 0.2140, 1.0])
    quad(visual=trimesh.visual.TextureVisuals(UV, material=material)).export(tmp_path / "quad.glb")
    quad(vertex_colors=np.tile((128, 128, 128, 255), (4, 1)).astype(np.uint8)).export(tmp_path / "quad.ply")
    glb, ply = (from_above(tmp_path / name, up="z")[16, 16].astype(int) for name in ("quad.glb", "quad.ply"))
    assert np.abs(glb - ply).max() <= 2


@pytest.mark.parametrize(("mode", "alphas"), [("OPAQUE", (255, 255)), ("BLEND", (77, 204)), ("MASK", (0, 255))])
def test_alpha_modes_of_gltf(tmp_path, mode, alphas):
    texels = np.full((8, 8, 4), 200, np.uint8)
    texels[:, :4, 3], texels[:, 4:, 3] = 77, 204
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(texels), alphaMode=mode, alphaCutoff=0.5 if mode == "MASK" else None
    )
    quad(visual=trimesh.visual.TextureVisuals(UV, material=material)).export(tmp_path / "quad.glb")
    image = from_above(tmp_path / "quad.glb", up="z").astype(int)
    assert np.abs(image[16, (11, 21), 3] - alphas).max() <= 1


def test_face_colours(tmp_path):
    mesh = quad()
    mesh.visual.face_colors = np.array([(255, 0, 0, 255), (0, 0, 255, 255)], np.uint8)
    mesh.export(tmp_path / "quad.ply")
    image = from_above(tmp_path / "quad.ply")
    # The triangles meet on the diagonal from the lower left to the upper right.
    assert (image[20, 20, 0], image[12, 12, 2]) > (150, 150)
    assert (image[20, 20, 2], image[12, 12, 0]) == (0, 0)


def test_layers_of_glass_add_up(tmp_path):
    half_clear = np.tile((255, 255, 255, 128), (4, 1)).astype(np.uint8)
    trimesh.util.concatenate([quad(h, vertex_colors=half_clear) for h in (0, 0.3, 0.6)]).export(tmp_path / "panes.ply")
    # Three panes let (127/255)^3 through.
    assert abs(from_above(tmp_path / "panes.ply")[16, 16, 3].astype(int) - 255 * (1 - (127 / 255) ** 3)) <= 1


@pytest.mark.parametrize("grey", [255, 12])
def test_outline_has_no_fringe(tmp_path, grey):
    # A flat square has one shade, so every pixel that shows any of it has just that colour.
    quad(vertex_colors=np.tile((grey, grey, grey, 255), (4, 1)).astype(np.uint8)).export(tmp_path / "quad.ply")
    image = from_above(tmp_path / "quad.ply", supersampling=12).astype(int)
    alpha = image[..., 3]
    assert ((alpha > 0) & (alpha < 255)).sum() > 40
    assert np.abs(image[alpha > 0][:, :3] - image[16, 16, :3]).max() <= 1
    assert not image[alpha == 0].any()
    # The square covers (2 * 0.7 * focal / 4.03)^2 pixels.
    focal = 33 / 2 / np.tan(CAMERA_ANGLE_X / 2)
    np.testing.assert_allclose(alpha.sum() / 255, (1.4 * focal / 4.03) ** 2, rtol=0.01)


def test_cube_is_flat_and_ball_is_smooth(tmp_path):
    poses = orbit_pose(0.0, 0.4, 4.03)[None]
    shades = {}
    for name, mesh in {"cube": trimesh.creation.box(), "ball": trimesh.creation.icosphere(1)}.items():
        mesh.export(tmp_path / f"{name}.off")  # shares its corners between faces
        surface = load_surface(tmp_path / f"{name}.off", radius=1)
        image = render_views(surface, poses, camera_angle_x=CAMERA_ANGLE_X, size=64, supersampling=1)[0]
        shades[name] = len(np.unique(image[image[..., 3] == 255][:, 0]))
    assert shades["cube"] == 2  # the faces that the camera sees: one side and the top
    assert shades["ball"] > 80  # twice as many as it has faces on that side


def test_point_looks_the_same_from_everywhere(tmp_path):
    quad(vertex_colors=np.tile((90, 160, 30, 255), (4, 1)).astype(np.uint8)).export(tmp_path / "quad.ply")
    surface = load_surface(tmp_path / "quad.ply", radius=1)
    images = render_views(surface, sample_poses(0, "a", 4), camera_angle_x=CAMERA_ANGLE_X, size=17, supersampling=1)
    assert len(np.unique(images[:, 8, 8], axis=0)) == 1


# ---- files that cannot be rendered -----------------------------------------------------------------------------------


def write_gltf(path: Path, *extensions: str) -> None:
    header = {"asset": {"version": "2.0"}, "extensionsUsed": extensions, "extensionsRequired": extensions}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    glb = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON") + text
    path.write_bytes(glb if path.suffix == ".glb" else text)


def write_bad(path: Path) -> str:
    """Writes a file of a kind that its name tells, and returns what the error should say."""
    kinds = {
        "draco.glb": "is compressed with KHR_draco_mesh_compression",
        "draco.gltf": "is compressed with KHR_draco_mesh_compression",
        "meshopt.glb": "is compressed with EXT_meshopt_compression",
        "basis.glb": "is compressed with KHR_texture_basisu",
        "html.glb": "is not a GLB file",
        "text.gltf": "cannot be read",
        "short.glb": "cannot be read",
        "empty.obj": "",
        "points.obj": "holds no triangles",
        "points.ply": "holds no triangles",
        "line.obj": "holds no triangles",
        "infinite.obj": "not finite",
        "text.ply": "cannot be read",
        "text.stl": "",
        "text.off": "cannot be read",
        "text.dae": "",
        "half.ply": "cannot be read",
        "index.off": "cannot be read",
    }
    extensions = {
        "draco": "KHR_draco_mesh_compression",
        "meshopt": "EXT_meshopt_compression",
        "basis": "KHR_texture_basisu",
    }
    if path.stem in extensions:
        write_gltf(path, extensions[path.stem])
    elif path.name == "half.ply":
        trimesh.creation.icosphere().export(path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_bytes(
            {
                "html.glb": b"<html>quota exceeded, try again tomorrow</html>",
                "short.glb": b"glTF\x02",
                "empty.obj": b"",
                "points.obj": b"v 0 0 0\nv 1 1 1\nv 1 0 1\n",
                "points.ply": b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"property float x\nproperty float y\n"
                b"property float z\nend_header\n0 0 0\n",
                "line.obj": b"v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n",
                "infinite.obj": b"v 0 0 0\nv inf 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 1 3 4\n",
                "index.off": b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n",
            }.get(path.name, b"this is not a mesh")
        )
    return kinds[path.name]


BAD = (
    *("draco.glb", "draco.gltf", "meshopt.glb", "basis.glb", "html.glb", "text.gltf", "short.glb", "empty.obj"),
    *("points.obj", "points.ply", "line.obj", "infinite.obj", "text.ply", "text.stl", "text.off", "text.dae"),
    *("half.ply", "index.off"),
)


@pytest.mark.parametrize("name", BAD)
def test_bad_mesh_is_one_line(tmp_path, name, monkeypatch):
    monkeypatch.setattr("surfaces.find_spec", lambda package: None)
    problem = write_bad(tmp_path / name)
    with pytest.raises(InputError) as caught:
        load_surface(tmp_path / name, radius=1)
    assert str(caught.value).startswith(f"{tmp_path / name} ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_draco_is_read_where_there_is_a_decoder(tmp_path, monkeypatch):
    write_gltf(tmp_path / "draco.glb", "KHR_draco_mesh_compression")
    monkeypatch.setattr("surfaces.find_spec", lambda package: package == "DracoPy")
    with pytest.raises(InputError, match="no triangles"):  # gets as far as trimesh
        load_surface(tmp_path / "draco.glb", radius=1)


def make_meshes(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        trimesh.creation.box((1, 1 + 0.1 * i, 1)).export(folder / f"{'abcdefgh'[i]}box.ply")


TINY = ("--size", "8", "--num-views", "2", "--supersampling", "1")


def test_bad_meshes_stop_or_are_counted(tmp_path, capsys):
    make_meshes(tmp_path / "in", 4)
    (tmp_path / "in" / "broken.ply").write_text("nothing")
    flags = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--class-name", "box", *TINY, "--workers", "1"]
    with pytest.raises(InputError, match=r"broken.ply cannot be read.*--on-bad-mesh skip"):
        main(flags)
    assert not (tmp_path / "out" / "box_splits.json").exists()
    main([*flags, "--on-bad-mesh", "skip"])
    said = capsys.readouterr().out
    assert "broken meshes skipped: 1" in said
    assert "broken.ply cannot be read" in said
    splits = json.loads((tmp_path / "out" / "box_splits.json").read_text())
    assert sorted(chain(*splits.values())) == ["abox", "bbox", "cbox", "dbox"]


def test_invisible_mesh_is_bad(tmp_path):
    (tmp_path / "in").mkdir()
    quad(vertex_colors=np.zeros((4, 4), np.uint8)).export(tmp_path / "in" / "ghost.ply")
    with pytest.raises(InputError, match=r"ghost.ply is invisible"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--class-name", "ghost", *TINY, *ALONE])


# ---- ids, groups and splits ------------------------------------------------------------------------------------------


@example(["a" * 90, "b" * 90])
@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=90), min_size=1, max_size=4))
def test_any_path_becomes_an_id(parts):
    name = Path(*parts)
    assert NAME.fullmatch(scene_id(name.parent / f"{name.name}.obj"))


def test_models_are_found_with_ids_of_their_own(tmp_path):
    names = [
        "a.obj",
        "a.glb",
        "A.ply",
        "b/c.STL",
        "b-c.dae",
        "стул.off",
        "стол.off",
        ".hidden.obj",
        "__MACOSX/a.obj",
        "a.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    models = find_models(tmp_path, "*", "prefix", {})
    assert len(models) == 7
    assert len({model.scene_id.lower() for model in models}) == 7
    assert all(NAME.fullmatch(model.scene_id) for model in models)
    assert [model.path.name for model in find_models(tmp_path, "*.glb", "prefix", {})] == ["a.glb"]


@pytest.mark.parametrize(
    ("first", "second", "by", "together"),
    [
        ("sedan.glb", "sedan-red.glb", "prefix", True),
        ("sedan1.glb", "Sedan_02.obj", "prefix", True),
        ("sedan.glb", "sedans.glb", "prefix", False),
        ("a/car.glb", "b/car.glb", "prefix", False),
        ("01.glb", "02.glb", "prefix", False),
        ("a/x.glb", "a/y.glb", "folder", True),
        ("a/x.glb", "b/x.glb", "folder", False),
        ("sedan1.glb", "sedan2.glb", "none", False),
    ],
)
def test_groups_by_name(first, second, by, together):
    assert (group_name(Path(first), by) == group_name(Path(second), by)) is together


def test_groups_from_a_file(tmp_path):
    for name in ("a.obj", "b.obj", "c.obj"):
        (tmp_path / name).touch()
    groups = {
        model.path.name: model.group for model in find_models(tmp_path, "*", "prefix", {"a.obj": "x", "c.obj": "x"})
    }
    assert groups["a.obj"] == groups["c.obj"] == "x"
    assert groups["b.obj"] != "x"
    with pytest.raises(InputError, match=r"--groups names 'd\.obj'"):
        find_models(tmp_path, "*", "prefix", {"d.obj": "x"})


@given(
    st.lists(st.integers(1, 12), min_size=3, max_size=40),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.0, 0.15]),
    st.integers(0, 5),
)
def test_splits_keep_groups_whole(sizes, val, test, seed):
    groups = {f"s{group}-{i}": f"g{group}" for group, size in enumerate(sizes) for i in range(size)}
    options = Options(val_fraction=val, test_fraction=test, seed=seed)
    try:
        splits = split_scenes(groups, options)
    except InputError:
        assert max(sizes) * 2 > min(sizes) and (val or test)
        return
    assert sorted(chain(*splits.values())) == sorted(groups)
    of = {split: {groups[i] for i in ids} for split, ids in splits.items()}
    assert not (of["train"] & of["val"] or of["train"] & of["test"] or of["val"] & of["test"])
    assert splits["train"] and bool(splits["val"]) == bool(val) and bool(splits["test"]) == bool(test)
    assert splits == split_scenes(dict(reversed(groups.items())), options)


def test_splits_have_the_shares_asked_for():
    splits = split_scenes({str(i): str(i) for i in range(100)}, Options(val_fraction=0.1, test_fraction=0.2))
    assert [len(splits[name]) for name in ("train", "val", "test")] == [70, 10, 20]
    other = split_scenes({str(i): str(i) for i in range(100)}, Options(val_fraction=0.1, test_fraction=0.2, seed=1))
    assert other != splits


def test_too_few_groups():
    with pytest.raises(InputError, match=r"9 models in 1 group cannot fill train, val and test.*--group-by none"):
        split_scenes({str(i): "chair" for i in range(9)}, Options())


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command_as_a_user_runs_it(tmp_path):
    make_meshes(tmp_path / "my meshes", 5)
    command = [sys.executable, SCRIPT, tmp_path / "my meshes", "--out", tmp_path / "out", "--class-name", "box", *TINY]
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {"PYTHONPATH": str(SCRIPT.parents[1])}}
    done = subprocess.run([*command, "--workers", "2"], **run)
    assert done.returncode == 0, done.stderr
    assert "5 scenes of 2 views, 3 train, 1 val, 1 test" in done.stdout
    split = load_split(tmp_path / "out", "box", "train", num_views=2)
    assert split.views.images.shape == (3, 2, 8, 8, 4)
    again = subprocess.run(command, **run)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith("error: ") and "--overwrite" in again.stderr


def test_worker_that_dies_is_said():
    with pytest.raises(InputError, match="use fewer --workers"), worker_map(2) as mapping:
        list(mapping(os._exit, [1]))


def test_interrupt_does_not_wait_for_workers():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), worker_map(2) as mapping:
        mapping(time.sleep, [120, 120, 120, 120, 120])
        raise KeyboardInterrupt
    for worker in multiprocessing.active_children():
        worker.join(30)
    assert time.monotonic() - start < 60


def test_stopped_run_goes_on(tmp_path):
    make_meshes(tmp_path / "in", 4)
    out = tmp_path / "out"
    flags = [str(tmp_path / "in"), "--out", str(out), "--class-name", "box", *TINY, "--workers", "1"]
    main(flags)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.png"))}
    (out / "box_splits.json").unlink()
    shutil.rmtree(out / "box" / "bbox")
    kept = out / "box" / "abox" / "r_0.png"
    stamp = kept.stat().st_mtime_ns
    with pytest.raises(InputError, match="rendered with other options"):
        main([*flags, "--size", "9"])
    main(flags)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.png"))} == before
    assert kept.stat().st_mtime_ns == stamp
    main([*flags, "--size", "9", "--overwrite"])
    assert load_split(out, "box", "train", num_views=2).views.images.shape[2] == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "0"], "--size is 0, wanted 1 to 4096"),
        (["--num-views", "0"], "--num-views is 0"),
        (["--object-radius", "1.5"], "--object-radius is 1.5, wanted 0.01 to 1.36"),
        (["--val-fraction", "0.9"], "--val-fraction is 0.9"),
        (["--class-name", "../x"], "--class-name is '../x'"),
        (["--pattern", "*.glb"], "holds no *.glb"),
        (["--groups", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, flags, message):
    make_meshes(tmp_path / "in", 3)
    with pytest.raises(InputError) as caught:
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--class-name", "box", "--workers", "1", *flags])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_extra_is_said(tmp_path, monkeypatch):
    make_meshes(tmp_path / "in", 3)
    monkeypatch.setattr("render_meshes.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"pip install 'jaxmeta\[meshes\]'"):
        main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--class-name", "box"])

"""Meshes of fields whose surfaces are known: balls with a density that falls with the distance from their middle."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from jaxmeta import isosurfaces
from jaxmeta.cameras import Views, orbit_pose
from jaxmeta.errors import InputError
from jaxmeta.rendering import Sampling

CENTRE, RADIUS, RESOLUTION = np.array([0.2, -0.1, 0.3]), 0.5, 24
VOXEL = 2 / (RESOLUTION - 1)


def ball(points):
    """Density 5 at distance RADIUS from the centre, 10 per unit of distance more inwards; red to the right of it."""
    offset = points - jnp.asarray(CENTRE, points.dtype)
    density = jnp.maximum(5 + 10 * (RADIUS - jnp.linalg.norm(offset, axis=-1)), 0)
    red, right = jnp.array([1.0, 0.2, 0.0]), offset[..., :1] > 0
    return density, jnp.where(right, red, jnp.zeros(3))


@pytest.fixture(scope="module")
def mesh():
    return isosurfaces.isosurface(ball, radius=1.0, resolution=RESOLUTION, threshold=5.0)


@pytest.fixture(scope="module")
def body(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_every_vertex_lies_on_the_sphere(mesh):
    distance = np.linalg.norm(mesh.vertices - CENTRE, axis=-1)
    # The density is linear along radii: the error is that of chords, voxel^2 / (8 radius), far below a voxel.
    np.testing.assert_allclose(distance, RADIUS, atol=VOXEL / 5)
    assert mesh.vertices.dtype == np.float32


def test_the_surface_is_closed_and_faces_outwards(mesh, body):
    assert body.is_watertight
    assert body.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.05)
    outwards = (body.face_normals * (body.triangles_center - CENTRE)).sum(-1)
    assert (outwards[body.area_faces > 1e-6] > 0).all()
    radii = (mesh.vertices - CENTRE) / RADIUS
    assert ((mesh.normals * radii).sum(-1) > 0.98).all()  # the cosine of 11 degrees


def test_colours_are_the_fields(mesh):
    right = mesh.vertices[:, 0] - CENTRE[0]
    assert (mesh.colours[right > 1e-3] == [255, 51, 0]).all()
    assert (mesh.colours[right < -1e-3] == 0).all()


def test_a_higher_threshold_is_a_smaller_ball():
    # Density 8 is at 0.5 - 0.3 = 0.2 from the middle.
    mesh = isosurfaces.isosurface(ball, radius=1.0, resolution=RESOLUTION, threshold=8.0)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices - CENTRE, axis=-1), 0.2, atol=VOXEL / 3)


def test_what_the_range_cuts_is_closed():
    everywhere = isosurfaces.isosurface(
        lambda points: (jnp.full(points.shape[:-1], 9.0), points * 0), radius=1.0, resolution=17, threshold=5.0
    )
    body = trimesh.Trimesh(everywhere.vertices, everywhere.faces, process=False)
    assert body.is_watertight and body.volume > 0
    assert np.linalg.norm(everywhere.vertices, axis=-1).max() < 1 + 2 * 2 / 16


def test_nothing_above_the_threshold_says_what_there_is():
    with pytest.raises(
        InputError, match=r"no density above --threshold 11 .* the highest found is 9\.\d+; give a lower"
    ):
        isosurfaces.isosurface(ball, radius=1.0, resolution=RESOLUTION, threshold=11.0)


def test_a_grid_is_the_same_in_any_chunks():
    whole = isosurfaces.density_grid(ball, radius=0.7, resolution=9)
    np.testing.assert_array_equal(isosurfaces.density_grid(ball, radius=0.7, resolution=9, points_per_chunk=100), whole)
    places = np.linspace(-0.7, 0.7, 9, dtype=np.float32)
    # x first, z last.
    np.testing.assert_allclose(whole[5, 3, 6], ball(jnp.array([places[5], places[3], places[6]]))[0], rtol=1e-5)
    assert whole[0, 0, 0] == 0 < ball(jnp.full(3, 0.5))[0]


def test_the_ball_that_all_views_hold():
    def views(distance: float, focal: float) -> Views:
        poses = np.stack([orbit_pose(angle, 0.3, distance) for angle in range(3)]).astype(np.float32)
        return Views(np.zeros((3, 20, 30, 4), np.uint8), poses, np.float32(focal))

    sampling = Sampling(near=2.0, far=5.5)
    # tan = 10 / 10: half the field of view is 45 degrees, and 4 sin 45 = 2.83 > 5.5 - 4 = 1.5.
    assert isosurfaces.seen_radius(views(4.0, 10.0), sampling) == pytest.approx(1.5, abs=1e-5)
    assert isosurfaces.seen_radius(views(2.5, 10.0), sampling) == pytest.approx(0.5, abs=1e-5)
    # tan = 10 / 40, sin = 1 / sqrt(17).
    assert isosurfaces.seen_radius(views(4.0, 40.0), sampling) == pytest.approx(4 / np.sqrt(17), abs=1e-5)
    assert isosurfaces.seen_radius(views(1.0, 10.0), sampling) < 0


def test_ply_keeps_the_frame_and_the_colours(mesh):
    read = trimesh.load(io.BytesIO(isosurfaces.encode(mesh, "ply")), file_type="ply", process=False)
    np.testing.assert_array_equal(read.vertices, mesh.vertices)
    np.testing.assert_array_equal(read.faces, mesh.faces)
    np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], mesh.colours)
    columns = read.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(np.stack([columns[name] for name in ("nx", "ny", "nz")], axis=-1), mesh.normals)


def test_glb_is_y_up_in_linear_light(mesh):
    scene = trimesh.load(io.BytesIO(isosurfaces.encode(mesh, "glb")), file_type="glb", process=False)
    (read,) = scene.geometry.values()
    x, y, z = read.vertices.T
    np.testing.assert_allclose(np.stack([x, -z, y], axis=-1), mesh.vertices, atol=1e-6)
    x, y, z = read.vertex_normals.T
    np.testing.assert_allclose(np.stack([x, -z, y], axis=-1), mesh.normals, atol=1e-6)
    assert read.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.05)
    # 51 / 255 = 0.2 in sRGB is ((0.2 + 0.055) / 1.055)^2.4 = 0.0331 of the light, 8 of 255.
    assert (read.visual.vertex_colors[mesh.vertices[:, 0] - CENTRE[0] > 1e-3, :3] == [255, 8, 0]).all()

"""Export and import: what is written is read anywhere, what others wrote computes alike; pickles stay shut."""

import dataclasses
import io
import json
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmeta import (
    arrayfiles,
    assembly,
    checkpoints,
    configfiles,
    initialisations,
    interchange,
    metalearning,
    optimisers,
    runfiles,
    starting,
)
from jaxmeta.cameras import orbit_pose
from jaxmeta.config import InnerConfig, OuterConfig, StepSizesConfig, TrainConfig
from jaxmeta.data.shapenet import write_scene, write_splits
from jaxmeta.errors import CheckpointError, InputError, StorageError
from jaxmeta.fields import RadianceField
from jaxmeta.kinds.views import DataConfig, FieldConfig, ViewsConfig
from jaxmeta.loading import load_initialisation
from jaxmeta.rendering import Sampling

PROJECT = Path(__file__).parents[1]
FREQUENCIES, WIDTH, DEPTH = 3, 5, 2
SIZES = [6 * FREQUENCIES, WIDTH, WIDTH, 4]
FIELD = FieldConfig(width=WIDTH, depth=DEPTH, num_frequencies=FREQUENCIES, max_log2_frequency=2.0)

Arrays = dict[str, np.ndarray]


def numbers(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Multiples of 1/1024: sums of few of them are exact in float32."""
    return (np.round(1024 * generator.normal(size=shape)) / 1024).astype(np.float32)


def learnit_arrays(generator: np.random.Generator) -> Arrays:
    names = ["model/linear", "model/linear_1", "model/linear_2"]
    kernels = {f"{name}/w": numbers(generator, *SIZES[i : i + 2]) for i, name in enumerate(names)}
    return kernels | {f"{name}/b": numbers(generator, SIZES[i + 1]) for i, name in enumerate(names)}


def nerf_meta_arrays(generator: np.random.Generator, max_log2_frequency: float = 4.0) -> Arrays:
    arrays = {"net.0.freqs": (2 ** np.linspace(0, max_log2_frequency, FREQUENCIES)).astype(np.float32)}
    for i in range(3):
        arrays[f"net.{2 * i + 1}.weight"] = numbers(generator, SIZES[i + 1], SIZES[i])
        arrays[f"net.{2 * i + 1}.bias"] = numbers(generator, SIZES[i + 1])
    return arrays


def learnit_network(arrays: Arrays, point: np.ndarray, max_log2_frequency: float) -> tuple[float, np.ndarray]:
    """The authors' network at one point: features for one frequency after the other, `x @ w + b`."""
    exponents = np.linspace(0, max_log2_frequency, FREQUENCIES)
    features = np.concatenate([np.concatenate([np.sin(point * 2**i), np.cos(point * 2**i)]) for i in exponents])
    for name in ("model/linear", "model/linear_1"):
        features = np.maximum(features @ arrays[f"{name}/w"].astype(float) + arrays[f"{name}/b"].astype(float), 0)
    raw = features @ arrays["model/linear_2/w"].astype(float) + arrays["model/linear_2/b"].astype(float)
    return max(raw[3], 0.0), 1 / (1 + np.exp(-raw[:3]))


def nerf_meta_network(arrays: Arrays, point: np.ndarray, density: str) -> tuple[float, np.ndarray]:
    """nerf-meta's network at one point: sines of all phases, then cosines of all; `weight @ x + bias`."""
    phases = [x * frequency for frequency in arrays["net.0.freqs"].astype(float) for x in point]
    features = np.array([*np.sin(phases), *np.cos(phases)])
    for i in (1, 3):
        outputs = arrays[f"net.{i}.weight"].astype(float) @ features + arrays[f"net.{i}.bias"].astype(float)
        features = np.maximum(outputs, 0)
    raw = arrays["net.5.weight"].astype(float) @ features + arrays["net.5.bias"].astype(float)
    return (max(raw[3], 0.0) if density == "relu" else np.log1p(np.exp(raw[3]))), 1 / (1 + np.exp(-raw[:3]))


def field_at(found: initialisations.Initialisation, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the imported field says in float64."""
    settings = found.settings.signal.field
    field = RadianceField(
        width=settings.width,
        depth=settings.depth,
        num_frequencies=settings.num_frequencies,
        max_log2_frequency=settings.max_log2_frequency,
        density_activation=settings.density_activation,
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), found.params)
    density, rgb = field.apply(params, jnp.asarray(points, jnp.float64))
    return np.asarray(density), np.asarray(rgb)


@pytest.fixture
def points(generator) -> np.ndarray:
    return generator.uniform(-2, 2, (20, 3))


def test_the_authors_network_computes_the_same_here(tmp_path, generator, points, x64):
    arrays = learnit_arrays(generator)
    np.savez(tmp_path / "chairs.npz", **arrays)
    density, rgb = field_at(initialisations.read(tmp_path / "chairs.npz"), points)
    expected = [learnit_network(arrays, point, 8.0) for point in points]
    assert 0 < np.count_nonzero(density) < len(points)  # both sides of the relu
    np.testing.assert_allclose(density, [wanted for wanted, _ in expected], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rgb, [wanted for _, wanted in expected], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("density", ["relu", "softplus"])
def test_nerf_metas_network_computes_the_same_here(tmp_path, generator, points, density, x64):
    arrays = nerf_meta_arrays(generator)
    np.savez(tmp_path / "cars.npz", **arrays)
    found_density, rgb = field_at(initialisations.read(tmp_path / "cars.npz", density), points)
    expected = [nerf_meta_network(arrays, point, density) for point in points]
    np.testing.assert_allclose(found_density, [wanted for wanted, _ in expected], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rgb, [wanted for _, wanted in expected], rtol=1e-12, atol=1e-12)


def test_nerf_metas_frequencies_may_be_missing(tmp_path, generator):
    arrays = nerf_meta_arrays(generator, 8.0)
    with_frequencies, without = tmp_path / "with.npz", tmp_path / "without.npz"
    np.savez(with_frequencies, **arrays)
    np.savez(without, **{name: array for name, array in arrays.items() if name != "net.0.freqs"})
    assert initialisations.read(with_frequencies).settings == initialisations.read(without).settings


def test_ten_layers_of_haiku_are_in_order(tmp_path, generator):
    sizes = [6, *[2] * 11, 4]
    names = [f"model/linear_{i}" if i else "model/linear" for i in range(12)]
    arrays = {f"{name}/w": numbers(generator, *sizes[i : i + 2]) for i, name in enumerate(names)}
    np.savez(tmp_path / "deep.npz", **arrays, **{f"{name}/b": np.zeros(sizes[i + 1]) for i, name in enumerate(names)})
    found = initialisations.read(tmp_path / "deep.npz")
    assert found.settings.signal.field.depth == 11
    np.testing.assert_array_equal(found.params["params"]["Dense_10"]["kernel"], arrays["model/linear_10/w"])


@pytest.mark.parametrize("make", [learnit_arrays, nerf_meta_arrays])
def test_foreign_networks_come_with_their_cameras(tmp_path, generator, make):
    np.savez(tmp_path / "cars.npz", **make(generator))
    settings = initialisations.read(tmp_path / "cars.npz").settings
    field = settings.signal.field
    assert settings.signal.pixel_centre == 0.0
    assert settings.signal.sampling == Sampling(near=2.0, far=6.0, num_samples=128, last_interval=1e-3)
    activation, highest = ("relu", 8.0) if make is learnit_arrays else ("shifted_softplus", 4.0)
    assert (field.density_activation, field.max_log2_frequency) == (activation, highest)
    assert (field.width, field.depth, field.num_frequencies) == (WIDTH, DEPTH, FREQUENCIES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of which two steps are on disk; the newest params are all 2."""
    folder = tmp_path_factory.mktemp("runs") / "tränierte cars"
    views = ViewsConfig(data=DataConfig(class_name="lamp"), field=FIELD, pixel_centre=0.25)
    settings = TrainConfig(run=folder, signal=views)
    runfiles.claim_run(settings)
    start = assembly.assemble(settings, size=(1, 1), num_rays=1).init(jax.random.key(0))
    with checkpoints.open_checkpoints(folder) as saved:
        for step in (1, 2):
            params = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, step), start)
            state = metalearning.initial_state(params, optimisers.outer_optimiser(settings.outer))
            checkpoints.save(saved, state._replace(step=jnp.int32(step)), {})
        checkpoints.finish(saved)
    return folder


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    path = trained.parent / "deep" / "er" / "lamps.safetensors"
    interchange.export_run(trained, path)
    return path


def five_lines() -> str:
    """How the documentation says that an exported file is read."""
    _, lines = (interchange.__doc__ or "").split("without jaxmeta:\n\n")
    return textwrap.dedent(lines.split("\n\n")[0])


def test_an_exported_file_is_read_by_five_lines_without_jaxmeta(exported, tmp_path):
    blocked = "import sys\nfor name in ('jaxmeta', 'jax', 'flax', 'orbax'): sys.modules[name] = None\n"
    shown = (
        "\nprint(json.dumps([config['pixel_centre'], {name: [array.dtype.name, array.tolist()] "
        "for name, array in params.items()}]))"
    )
    (tmp_path / "cars.safetensors").write_bytes(exported.read_bytes())
    assert len(five_lines().splitlines()) == 5
    words = [sys.executable, "-c", blocked + five_lines() + shown]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    pixel_centre, params = json.loads(done.stdout)
    assert pixel_centre == 0.25
    expected = {f"params/Dense_{i}/kernel": [2.0] * SIZES[i] for i in range(3)}
    assert {name: [row[0] for row in rows] for name, (_, rows) in params.items() if "kernel" in name} == expected
    assert params["params/Dense_2/bias"] == ["float32", [2.0] * 4]


def test_what_was_exported_comes_back(trained, exported, tmp_path):
    interchange.import_run(exported, tmp_path / "again")
    before, after = (configfiles.load(run / "config.json") for run in (trained, tmp_path / "again"))
    assert configfiles.differences(before, after) == []
    assert after.run == tmp_path / "again"
    (_, first), (step, again) = (load_initialisation(run, after) for run in (trained, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert step == 0
    assert "meta-step 2" in initialisations.read(exported).origin


@pytest.fixture(scope="module")
def meta_sgd(tmp_path_factory) -> Path:
    """A run whose network and step sizes were learned."""
    folder = tmp_path_factory.mktemp("runs") / "meta-sgd"
    outer = OuterConfig(algorithm="meta-sgd", step_sizes=StepSizesConfig(granularity="parameter", per_step=True))
    settings = TrainConfig(run=folder, signal=ViewsConfig(field=FIELD), inner=InnerConfig(num_steps=2), outer=outer)
    runfiles.claim_run(settings)
    start = assembly.assemble(settings, size=(1, 1), num_rays=1).init(jax.random.key(0))
    like = assembly.first_initialisation(settings, start)
    leaves, structure = jax.tree.flatten(like)
    numbered = [jnp.full_like(leaf, i) for i, leaf in enumerate(leaves)]
    state = metalearning.initial_state(jax.tree.unflatten(structure, numbered), optimisers.outer_optimiser(outer))
    with checkpoints.open_checkpoints(folder) as saved:
        checkpoints.save(saved, state, {})
        checkpoints.finish(saved)
    return folder


def test_learned_step_sizes_come_back(meta_sgd, tmp_path):
    path = tmp_path / "cars.safetensors"
    interchange.export_run(meta_sgd, path)
    arrays = safetensors.numpy.load_file(path)
    assert arrays["params/Dense_0/bias"].tolist() == [0] * WIDTH
    assert arrays["step_sizes/params/Dense_0/bias"].shape == (2, WIDTH)
    interchange.import_run(path, tmp_path / "again")
    settings = configfiles.load(tmp_path / "again" / "config.json")
    (_, first), (_, again) = (load_initialisation(run, settings) for run in (meta_sgd, tmp_path / "again"))
    assert isinstance(again, metalearning.Learned)
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda arrays, name: arrays | {name: arrays[name][:1]}, r"is \(1, 4\), wanted \(2, 4\)"),
        (lambda arrays, name: {n: arrays[n] for n in arrays if n != name}, "lacks step_sizes/params/Dense_2/bias"),
        (lambda arrays, name: arrays | {f"{name}es": arrays[name]}, "has step_sizes/params/Dense_2/biases"),
    ],
)
def test_step_sizes_that_do_not_fit_are_refused(meta_sgd, tmp_path, change, wanted):
    path = tmp_path / "cars.safetensors"
    interchange.export_run(meta_sgd, path)
    metadata = arrayfiles.read(path).metadata
    arrays = change(safetensors.numpy.load_file(path), "step_sizes/params/Dense_2/bias")
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    with pytest.raises(InputError, match=wanted) as caught:
        initialisations.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_training_starts_from_what_was_learned(trained, exported, meta_sgd, tmp_path, as_file):
    settings = TrainConfig(
        run=tmp_path / "new", signal=ViewsConfig(field=FIELD), start_from=exported if as_file else trained
    )
    init = assembly.assemble(settings, size=(1, 1), num_rays=1).init
    started = starting.beginning(settings, init)()
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 2), started.params)
    assert started.step == 0
    # Its step sizes stay behind, and a run that asks for some begins with ones.
    again = dataclasses.replace(settings, start_from=meta_sgd, outer=OuterConfig(algorithm="meta-sgd"))
    params = starting.beginning(again, init)().params
    assert isinstance(params, metalearning.Learned)
    assert params.params["params"]["Dense_1"]["kernel"].max() == 3
    assert params.step_sizes["params"]["Dense_1"]["kernel"].tolist() == [1]


def test_a_run_that_has_begun_needs_its_start_no_more(trained):
    settings = TrainConfig(run=trained, signal=ViewsConfig(field=FIELD), start_from=Path("gone"))
    init = assembly.assemble(settings, size=(1, 1), num_rays=1).init
    assert starting.beginning(settings, init)().step == 0


def test_a_run_without_checkpoints_is_not_exported(tmp_path):
    runfiles.claim_run(TrainConfig(run=tmp_path, signal=ViewsConfig(field=FIELD)))
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        interchange.export_run(tmp_path, tmp_path / "cars.safetensors")


def test_an_export_that_cannot_be_written_says_so(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cars\.safetensors cannot be written"):
        interchange.export_run(trained, tmp_path / "file" / "cars.safetensors")


def test_an_import_leaves_a_run_alone_that_is_there(trained, exported):
    with pytest.raises(InputError, match="holds a run already; give another folder"):
        interchange.import_run(exported, trained)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def pickled(bomb: Bomb, protocol: int) -> bytes:
    return pickle.dumps({"model/linear/w": bomb}, protocol)


def npy(bomb: Bomb) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array({"model/linear/w": bomb}), allow_pickle=True)
    return content.getvalue()


def npz_of_objects(bomb: Bomb) -> bytes:
    content = io.BytesIO()
    np.savez(content, **{"model/linear/w": np.array([bomb])})
    return content.getvalue()


def torch_zip(bomb: Bomb) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(bomb, 2))
        archive.writestr("archive/data/0", bytes(16))
    return content.getvalue()


PICKLES = {
    "protocol2.npz": (lambda bomb: pickled(bomb, 2), "it is a pickle"),
    "protocol5.safetensors": (lambda bomb: pickled(bomb, 5), "it is a pickle"),
    "protocol0.pkl": (lambda bomb: pickled(bomb, 0), "it is a pickle"),
    "protocol0.npz": (lambda bomb: pickled(bomb, 0), "."),
    "array.npy": (npy, "one array, or a pickle"),
    "array.npz": (npy, "one array, or a pickle"),
    "objects.npz": (npz_of_objects, "Object arrays cannot be loaded"),
    "model.pth": (torch_zip, "it is a pickle"),
    "model.npz": (torch_zip, "such as torch.save writes around a pickle"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_n5_a_pickle_stays_shut(tmp_path, name):
    make, reason = PICKLES[name]
    (tmp_path / name).write_bytes(make(Bomb(tmp_path / "exploded")))
    with pytest.raises(InputError, match=rf"{name} is not .*{reason}.*a pickle is never loaded") as caught:
        initialisations.read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["lamps.PT", "lamps.dill", "lamps.pickle"])
def test_n5_the_name_of_a_pickle_is_enough(exported, tmp_path, name):
    (tmp_path / name).write_bytes(exported.read_bytes())
    with pytest.raises(InputError, match="it is a pickle"):
        initialisations.read(tmp_path / name)


def test_a_size_that_looks_like_a_pickle_is_none(tmp_path):
    tensors = {"a": np.ones(2, np.float32)}
    first_bytes = {
        safetensors.numpy.save(tensors, {"padding": " " * length})[:1]: length for length in range(0, 256, 8)
    }
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", {"padding": " " * first_bytes[b"\x80"]})
    assert (tmp_path / "a.safetensors").read_bytes()[:1] == b"\x80"
    assert arrayfiles.read(tmp_path / "a.safetensors").arrays["a"].tolist() == [1, 1]


DAMAGE = {
    "cut in the arrays": lambda content: content[:-5],
    "cut in the header": lambda content: content[:30],
    "header of another length": lambda content: bytes([content[0] ^ 8]) + content[1:],
    "header that is no JSON": lambda content: content[:9] + b"\xff" * 20 + content[29:],
    "empty": lambda content: b"",
    "a web page": lambda content: b"<!DOCTYPE html>\n<html>\n</html>",
}


@pytest.mark.parametrize("name", ["lamps.safetensors", "lamps.npz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_gives_one_line(exported, tmp_path, generator, name, damage):
    if name == "lamps.npz":
        np.savez(tmp_path / name, **learnit_arrays(generator))
    content = exported.read_bytes() if name == "lamps.safetensors" else (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(DAMAGE[damage](content))
    with pytest.raises(InputError, match=rf"{name} is not a sound safetensors file or npz") as caught:
        initialisations.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_of_an_npz_is_noticed(tmp_path, generator):
    path = tmp_path / "cars.npz"
    np.savez(path, **learnit_arrays(generator))
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC"):
        initialisations.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.npz cannot be read: No such file"):
        initialisations.read(tmp_path / "missing.npz")


def test_a_bomb_of_zeros_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", **{"model/linear/w": np.zeros((100, 100))})
    monkeypatch.setattr(arrayfiles, "_MAX_BYTES", 50_000)
    with pytest.raises(InputError, match="unpacks to more than 50000 bytes"):
        initialisations.read(tmp_path / "zeros.npz")


LAST = "model/linear_2"
WRONG = {
    "nan": ({f"{LAST}/b": np.array([0, 0, np.nan, 0])}, r"'model/linear_2/b' has values that are not finite"),
    "too large": ({f"{LAST}/b": np.full(4, 1e300)}, "not finite, or too large for float32"),
    "integers": ({f"{LAST}/b": np.zeros(4, np.int32)}, "'model/linear_2/b' is int32, wanted float16, float32 or"),
    "axes": ({f"{LAST}/w": np.zeros((5, 4, 1))}, r"model/linear_2/w is \(5, 4, 1\) .* wanted 2 and 1 axes"),
    "nothing": ({"model/linear/w": np.zeros((0, 5))}, r"model/linear/w is \(0, 5\)"),
    "outputs": ({f"{LAST}/w": np.zeros((5, 3))}, "layer 2 maps 5 to 3 features and has 4 biases, wanted 5 to 4"),
    "biases": ({"model/linear/b": np.zeros(4)}, "layer 0 maps 18 to 5 features and has 4 biases, wanted 18 to 5"),
    "inputs": ({"model/linear/w": np.zeros((21, 5))}, "the first layer has 21 inputs, wanted 6 for each frequency"),
    "raw xyz": ({"model/linear/w": np.zeros((63, 5))}, "the first layer has 63 inputs"),
    "a name too many": ({"model/linear_7/w": np.zeros(1)}, "holds 'model/linear_7/w', and 3 layers of learnit"),
    "nerf-meta's frequencies": ({"net.0.freqs": np.ones(3)}, "holds 'net.0.freqs', and 3 layers of learnit"),
    "no bias": ({f"{LAST}/b": None}, "has model/linear_2/w, but not model/linear_2/b"),
    "a gap": ({"model/linear_1/w": None, "model/linear_1/b": None}, "and 1 layers of learnit before a gap"),
    "no first layer": ({"model/linear/w": None}, r"holds 'model/linear/b', .*; wanted one of params/Dense_0/kernel, "),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_are_no_network_are_refused(tmp_path, generator, name):
    change, message = WRONG[name]
    arrays = learnit_arrays(generator) | change
    np.savez(tmp_path / "cars.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=rf"cars\.npz.*{message}"):
        initialisations.read(tmp_path / "cars.npz")


@pytest.mark.parametrize(
    "frequencies", [np.array([1.0, 3.0, 8.0]), np.ones(2), np.float32(1), np.zeros(0), -np.ones(3)]
)
def test_other_frequencies_are_refused(tmp_path, generator, frequencies):
    np.savez(tmp_path / "cars.npz", **nerf_meta_arrays(generator) | {"net.0.freqs": np.array(frequencies)})
    with pytest.raises(InputError, match=r"net\.0\.freqs is not 2\^linspace"):
        initialisations.read(tmp_path / "cars.npz")


METADATA = {
    "none": (lambda metadata: None, "has format and version (None, None) in its metadata, wanted ('jaxmeta-init"),
    "version": (lambda metadata: metadata | {"version": "2"}, "has format and version ('jaxmeta-initialisation', '2')"),
    "config": (lambda metadata: metadata | {"config": '{"seed": "x"}'}, "is not a config of this version of jaxmeta"),
    "values": (lambda metadata: metadata | {"config": '{"outer": {"num_steps": 0}}'}, "--outer.num-steps 0 must be"),
    "depth": (lambda metadata: metadata | {"config": '{"field": {"depth": 1000000000}}'}, "has 3 layers, wanted 10000"),
    "width": (lambda metadata: metadata | {"config": '{"field": {"depth": 2}}'}, "layer 0 maps 18 to 5 features and"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_do_not_fit_are_refused(exported, tmp_path, name):
    change, message = METADATA[name]
    with safetensors.safe_open(exported, framework="numpy") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    safetensors.numpy.save_file(arrays, tmp_path / "cars.safetensors", change(metadata))
    with pytest.raises(InputError) as caught:
        initialisations.read(tmp_path / "cars.safetensors")
    assert message in str(caught.value)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    every = [sys.executable, *map(str, words)]
    return subprocess.run(every, capture_output=True, text=True, timeout=300, cwd=PROJECT)


def test_the_commands_import_a_foreign_network_that_eval_accepts(tmp_path, generator):
    images = iter(generator.integers(0, 256, (2, 3, 8, 8, 4), dtype=np.uint8))
    poses = np.stack([orbit_pose(view, 0.5, 4.0) for view in range(3)])
    for scene in ("a", "b"):
        write_scene(tmp_path / "cube" / scene, next(images), poses, 0.7)
    write_splits(tmp_path, "cube", {"train": ["a"], "test": ["b"]})
    np.savez(tmp_path / "cars.npz", **nerf_meta_arrays(generator))
    run = tmp_path / "run"
    done = command("-m", "jaxmeta.interchange", "import", tmp_path / "cars.npz", run, "--class-name", "cube")
    assert done.returncode == 0, done.stderr
    words = ["--data-root", tmp_path, "--query", 1, "--stages", 0, 1, "--num-rays", 4, "--figure-scenes", 1]
    done = command("eval.py", run, *words)
    assert done.returncode == 0, done.stderr
    assert "1 scene of 'test', 1 support view and 1 query view, 1 seed, imported\n" in done.stdout
    report = (run / "eval" / "report.html").read_text()
    assert "cars.npz, nerf-meta; run" in report and "meta-step" not in report
    results = json.loads((run / "eval" / "results.json").read_text())
    assert results["training"]["field"]["density_activation"] == "shifted_softplus"
    assert {row["initialisation"] for row in results["views"]} == {"standard", "learned"}
    assert iio.imread(run / "eval" / "comparison.png").ndim == 3
    done = command("eval.py", run, *words, "--checkpoint", "best")
    assert done.returncode == 3 and "run which was imported or not validated" in done.stderr


def test_n5_the_command_refuses_a_pickle_with_exit_code_2(tmp_path):
    (tmp_path / "chairs.pkl").write_bytes(pickled(Bomb(tmp_path / "exploded"), 4))
    done = command("-m", "jaxmeta.interchange", "import", tmp_path / "chairs.pkl", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "run").exists()

"""Knows a network by the names of its arrays, and turns it into the parameters and settings of a RadianceField.

For layers i = 0, 1, ..:

    params/Dense_<i>/kernel, bias      jaxmeta's; the settings come with the file, and where Meta-SGD learned them
                                       step_sizes/params/Dense_<i>/kernel, bias
    model/linear[_<i>]/w, b            learnit's, the paper authors' for ShapeNet (haiku); without _<i> for i = 0
    net.<2 i + 1>.weight, bias         nerf-meta's (torch), and net.0.freqs, the frequencies of its encoding

All end in red, green, blue, density. learnit's kernels and encoding are laid out as ours. nerf-meta's weights are
transposed, and its encoding has all sines before all cosines. Its density is softplus(x), which is our
shifted_softplus(x + 1), or relu(x) in its first version; learnit's is relu(x). Both take rays through pixel corners,
128 samples from 2 to 6 and a last interval of 1e-3. Departure: learnit's directions are not of unit length, so that its
density is per unit of depth; ours is per unit of distance.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxmeta import arrayfiles, assembly, configfiles
from jaxmeta import config as configs
from jaxmeta.arrayfiles import ArrayFile
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError
from jaxmeta.fields import OUTPUTS, DensityActivation
from jaxmeta.kinds.views import FieldConfig, ViewsConfig
from jaxmeta.metalearning import Learned
from jaxmeta.rendering import Sampling

FORMAT, VERSION = "jaxmeta-initialisation", "1"
"""Of exported files, in their metadata."""

Density = Literal["relu", "softplus"]

_LAYOUTS = {
    "jaxmeta": lambda i: (f"params/Dense_{i}/kernel", f"params/Dense_{i}/bias"),
    "learnit": lambda i: tuple(f"model/linear_{i}".removesuffix("_0") + end for end in ("/w", "/b")),
    "nerf-meta": lambda i: (f"net.{2 * i + 1}.weight", f"net.{2 * i + 1}.bias"),
}
"""The names of the i-th layer's kernel and bias."""
_FREQUENCIES = "net.0.freqs"
_STEP_SIZES = "step_sizes/"

Arrays = PyTree[Float[np.ndarray, "..."]]
Layers = list[tuple[np.ndarray, np.ndarray]]
"""Kernel (inputs x outputs) and bias of each."""


class Initialisation(NamedTuple):
    """A network in jaxmeta's layout."""

    params: Arrays | Learned
    """Of a RadianceField, in NumPy."""
    settings: TrainConfig
    """That it was trained with, as far as they are known."""
    origin: str
    """In words."""


def read(path: Path, density: Density = "softplus") -> Initialisation:
    """Returns the network of a file, and the settings to use it with.

    Args:
      path: safetensors, or npz of plain arrays.
      density: the activation of nerf-meta's.

    Raises:
      InputError: the file is refused, or its arrays are not one of the networks that are known.
    """
    content = arrayfiles.read(path)
    step_sizes = {name: array for name, array in content.arrays.items() if name.startswith(_STEP_SIZES)}
    content = content._replace(arrays={n: array for n, array in content.arrays.items() if n not in step_sizes})
    layout = next((layout for layout, names in _LAYOUTS.items() if names(0)[0] in content.arrays), None)
    if layout is None:
        wanted = ", ".join(names(0)[0] for names in _LAYOUTS.values())
        raise InputError(f"{path} holds {_some(content.arrays)}; wanted one of {wanted}")
    step = content.metadata.get("step", "")
    origin = f"{path}, {layout}" + f", meta-step {step}" * step.isdecimal()
    settings = _exported_settings(path, content) if layout == "jaxmeta" else TrainConfig()
    if not isinstance(settings.signal, ViewsConfig):
        return Initialisation(
            _with_step_sizes(path, _of_other_kind(path, content, settings), step_sizes, settings), settings, origin
        )
    layers = _layers(path, content.arrays, layout)
    field = settings.signal.field
    if layout == "learnit":
        field = _sized(layers, FieldConfig(max_log2_frequency=8.0, density_activation="relu"))
    elif layout == "nerf-meta":
        highest = _max_log2_frequency(path, content.arrays, len(layers[0][0]) // 6)
        layers, activation = _from_nerf_meta(layers, density)
        field = _sized(layers, FieldConfig(max_log2_frequency=highest, density_activation=activation))
    if layout != "jaxmeta":
        settings = _foreign_settings(field)
    _check_shapes(path, layers, field)
    dense = {f"Dense_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(layers)}
    params = _with_step_sizes(path, {"params": dense}, step_sizes, settings)
    return Initialisation(params, settings, origin)


def named_arrays(params: Arrays | Learned) -> dict[str, np.ndarray]:
    """Returns the arrays of an exported file."""
    if isinstance(params, Learned):
        step_sizes = named_arrays(params.step_sizes)
        return named_arrays(params.params) | {f"{_STEP_SIZES}{name}": array for name, array in step_sizes.items()}
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _with_step_sizes(
    path: Path, params: Arrays, step_sizes: dict[str, np.ndarray], settings: TrainConfig
) -> Arrays | Learned:
    """Returns the parameters together with the step sizes that the settings ask for."""
    wanted = jax.device_get(assembly.first_initialisation(settings, jax.tree.map(jnp.asarray, params)))
    names = named_arrays(wanted).keys() - named_arrays(params).keys()
    for name in sorted(names | step_sizes.keys()):
        if name not in step_sizes or name not in names:
            raise InputError(f"{path} {'lacks' if name in names else 'has'} {name}; its config tells otherwise")
    if not isinstance(wanted, Learned):
        return params
    found = {name: step_sizes[name] for name in named_arrays(wanted) if name in names}
    for (name, array), leaf in zip(found.items(), jax.tree.leaves(wanted.step_sizes), strict=True):
        if array.shape != leaf.shape:
            raise InputError(f"{path}: {name} is {array.shape}, wanted {leaf.shape}")
    return Learned(params, jax.tree.unflatten(jax.tree.structure(params), list(found.values())))


def _of_other_kind(path: Path, content: ArrayFile, settings: TrainConfig) -> Arrays:
    """Returns the parameters of an exported network that is no RadianceField."""
    init = settings.signal.assemble(size=(1, 1), num_rays=None).init
    leaves, tree = jax.tree.flatten_with_path(jax.eval_shape(init, jax.random.key(0)))
    wanted = {jax.tree_util.keystr(name, simple=True, separator="/"): leaf.shape for name, leaf in leaves}
    found = {name: array.shape for name, array in content.arrays.items()}
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise InputError(f"{path}: {names[0]} is {found.get(names[0])}, wanted {wanted.get(names[0])}")
    return jax.tree.unflatten(tree, [content.arrays[name] for name in wanted])


def _layers(path: Path, arrays: dict[str, np.ndarray], layout: str) -> Layers:
    """Returns the layers in order; a kernel as the file has it."""
    layers, unused = [], arrays.keys() - ({_FREQUENCIES} if layout == "nerf-meta" else set())
    while (names := _LAYOUTS[layout](len(layers)))[0] in arrays:
        if names[1] not in arrays:
            raise InputError(f"{path} has {names[0]}, but not {names[1]}")
        kernel, bias = (arrays[name] for name in names)
        if kernel.ndim != 2 or bias.ndim != 1 or not kernel.size:
            raise InputError(f"{path}: {names[0]} is {kernel.shape} and {names[1]} {bias.shape}, wanted 2 and 1 axes")
        layers.append((kernel.T if layout == "nerf-meta" else kernel, bias))
        unused -= set(names)
    if unused or len(layers) < 2:
        raise InputError(f"{path} holds {_some(unused or arrays)}, and {len(layers)} layers of {layout} before a gap")
    if len(layers[0][0]) % 6:
        raise InputError(f"{path}: the first layer has {len(layers[0][0])} inputs, wanted 6 for each frequency")
    return layers


def _max_log2_frequency(path: Path, arrays: dict[str, np.ndarray], num_frequencies: int) -> float:
    """Returns what nerf-meta's encoding, whose frequencies may be missing, reaches."""
    frequencies = arrays.get(_FREQUENCIES, 2 ** np.linspace(0, 8, num_frequencies))
    highest = float(np.log2(np.max(frequencies, initial=1.0)))
    expected = 2 ** np.linspace(0, highest, num_frequencies)
    if frequencies.shape != expected.shape or not np.allclose(frequencies, expected):
        raise InputError(f"{path}: {_FREQUENCIES} is not 2^linspace(0, {highest:g}, {num_frequencies})")
    return highest


def _from_nerf_meta(layers: Layers, density: Density) -> tuple[Layers, DensityActivation]:
    """Returns the layers for our order of the encoding and our density, and its activation."""
    (first, first_bias), *others, (last, last_bias) = layers
    # Rows run over sine and cosine, frequency, dimension; ours over frequency, sine and cosine, dimension.
    first = first.reshape(2, -1, 3, first.shape[1]).swapaxes(0, 1).reshape(first.shape)
    if density == "relu":
        return [(first, first_bias), *others, (last, last_bias)], "relu"
    last_bias = np.append(last_bias[:-1], last_bias[-1:] + 1)
    return [(first, first_bias), *others, (last, last_bias)], "shifted_softplus"


def _sized(layers: Layers, field: FieldConfig) -> FieldConfig:
    """Returns the field with the sizes of these layers."""
    kernel = layers[0][0]
    return dataclasses.replace(field, width=kernel.shape[1], depth=len(layers) - 1, num_frequencies=len(kernel) // 6)


def _foreign_settings(field: FieldConfig) -> TrainConfig:
    """Returns the settings that learnit and nerf-meta share, for a field."""
    sampling = Sampling(near=2.0, far=6.0, num_samples=128, last_interval=1e-3)
    return TrainConfig(signal=ViewsConfig(field=field, sampling=sampling, pixel_centre=0.0))


def _exported_settings(path: Path, content: ArrayFile) -> TrainConfig:
    kind = content.metadata.get("format"), content.metadata.get("version")
    if kind != (FORMAT, VERSION) or "config" not in content.metadata:
        raise InputError(f"{path} has format and version {kind} in its metadata, wanted {(FORMAT, VERSION)}")
    settings = configfiles.decode(content.metadata["config"], path)
    configs.check(settings)
    return settings


def _check_shapes(path: Path, layers: Layers, field: FieldConfig) -> None:
    if len(layers) != field.depth + 1:
        raise InputError(f"{path} has {len(layers)} layers, wanted {field.depth + 1}")
    sizes = [6 * field.num_frequencies, *[field.width] * field.depth, OUTPUTS]
    for i, (kernel, bias) in enumerate(layers):
        if (*kernel.shape, *bias.shape) != (sizes[i], sizes[i + 1], sizes[i + 1]):
            raise InputError(
                f"{path}: layer {i} maps {kernel.shape[0]} to {kernel.shape[1]} features and has {len(bias)} biases, "
                f"wanted {sizes[i]} to {sizes[i + 1]}"
            )


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(map(repr, found[:3])) + ", .." * (len(found) > 3) or "no arrays"

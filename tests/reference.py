"""The papers' formulas in float64 NumPy, one number at a time: slow, and plain enough to be checked by reading.

Mildenhall et al. 2020 (NeRF) for rays and compositing, Tancik et al. 2021 (learned initialisations) for the encoding
and the network, Wang et al. 2004 for SSIM. Nothing here imports the package.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Layers = Sequence[tuple[np.ndarray, np.ndarray]]
"""Kernel (inputs x outputs) and bias of each layer."""
Field = Callable[[np.ndarray], tuple[float, Sequence[float]]]
"""One point -> density, colour."""


def encoding(point: Sequence[float], num_frequencies: int, max_log2_frequency: float) -> list[float]:
    features = []
    for i in range(num_frequencies):
        frequency = 2.0 ** (max_log2_frequency * i / (num_frequencies - 1))
        features += [math.sin(frequency * x) for x in point]
        features += [math.cos(frequency * x) for x in point]
    return features


def network(
    layers: Layers, point: Sequence[float], *, num_frequencies: int, max_log2_frequency: float, density_activation: str
) -> tuple[float, list[float]]:
    """The density and the colour at a point."""
    features = encoding(point, num_frequencies, max_log2_frequency)
    for depth, (kernel, bias) in enumerate(layers):
        outputs = []
        for j in range(len(bias)):
            total = float(bias[j])
            for i in range(len(features)):
                total += features[i] * float(kernel[i][j])
            outputs.append(max(total, 0.0) if depth < len(layers) - 1 else total)
        features = outputs
    red, green, blue, raw = features
    density = max(raw, 0.0) if density_activation == "relu" else math.log1p(math.exp(raw - 1))
    return density, [1 / (1 + math.exp(-x)) for x in (red, green, blue)]


def pixel_ray(
    row: float, column: float, pose: np.ndarray, focal: float, height: int, width: int, pixel_centre: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where the ray starts, and its unit direction: a vector in camera axes, turned by the pose's rotation."""
    in_camera = [
        (column + pixel_centre - width / 2) / focal,
        -(row + pixel_centre - height / 2) / focal,
        -1.0,
    ]
    in_scene = [sum(float(pose[i, j]) * in_camera[j] for j in range(3)) for i in range(3)]
    length = math.sqrt(sum(x * x for x in in_scene))
    return np.array([float(pose[i, 3]) for i in range(3)]), np.array([x / length for x in in_scene])


def distances(uniform: Sequence[float], near: float, far: float) -> list[float]:
    """One sample in each stratum; the strata meet halfway between evenly spaced distances."""
    count = len(uniform)
    even = [near + (far - near) * i / (count - 1) for i in range(count)]
    samples = []
    for i in range(count):
        lower = even[0] if i == 0 else (even[i - 1] + even[i]) / 2
        upper = even[-1] if i == count - 1 else (even[i] + even[i + 1]) / 2
        samples.append(lower + (upper - lower) * float(uniform[i]))
    return samples


def compositing_weights(density: Sequence[float], samples: Sequence[float], last_interval: float) -> list[float]:
    weights, arriving = [], 1.0
    for i in range(len(samples)):
        interval = samples[i + 1] - samples[i] if i + 1 < len(samples) else last_interval
        passing = math.exp(-density[i] * interval)
        weights.append(arriving * (1 - passing))
        arriving *= passing
    return weights


def render_ray(
    field: Field,
    origin: np.ndarray,
    direction: np.ndarray,
    uniform: Sequence[float],
    *,
    near: float,
    far: float,
    last_interval: float,
) -> tuple[list[float], float, float]:
    """The colour before a white background, the opacity, and the mean distance with the background at `far`."""
    samples = distances(uniform, near, far)
    seen = [field(origin + sample * direction) for sample in samples]
    weights = compositing_weights([density for density, _ in seen], samples, last_interval)
    opacity = sum(weights)
    rgb = [
        sum(weight * float(colour[c]) for weight, (_, colour) in zip(weights, seen, strict=True)) + 1 - opacity
        for c in range(3)
    ]
    distance = sum(weight * sample for weight, sample in zip(weights, samples, strict=True)) + (1 - opacity) * far
    return rgb, opacity, distance


def composite_on_white(rgba: Sequence[int]) -> list[float]:
    alpha = int(rgba[3]) / 255
    return [int(value) / 255 * alpha + 1 - alpha for value in rgba[:3]]


def mean_squared_error(image: np.ndarray, target: np.ndarray) -> float:
    total, count = 0.0, 0
    for a, b in zip(np.ravel(image), np.ravel(target), strict=True):
        total, count = total + (float(a) - float(b)) ** 2, count + 1
    return total / count


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    clipped = np.array([min(max(float(x), 0.0), 1.0) for x in np.ravel(image)])
    return -10 * math.log10(mean_squared_error(clipped, target))


def ssim(image: np.ndarray, target: np.ndarray) -> float:
    """Mean over the 11x11 windows that lie within the image, and over channels; the peak is 1."""
    window = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    window /= window.sum()
    scores = []
    for row in range(image.shape[0] - 10):
        for column in range(image.shape[1] - 10):
            for channel in range(image.shape[2]):
                a = image[row : row + 11, column : column + 11, channel].astype(float)
                b = target[row : row + 11, column : column + 11, channel].astype(float)
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
                scores.append(luminance * (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2))
    return float(np.mean(scores))


def gradient(loss: Callable[[list[np.ndarray]], float], leaves: list[np.ndarray]) -> list[np.ndarray]:
    """Central differences of a loss, one number of the parameters at a time."""
    step, gradients = 1e-5, []
    for n, leaf in enumerate(leaves):
        slopes = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            moved = []
            for sign in (1, -1):
                changed = [other.copy() for other in leaves]
                changed[n][index] += sign * step
                moved.append(loss(changed))
            slopes[index] = (moved[0] - moved[1]) / (2 * step)
        gradients.append(slopes)
    return gradients


def adapt(
    losses: Sequence[Callable[[list[np.ndarray]], float]], leaves: list[np.ndarray], step_size: float
) -> list[np.ndarray]:
    """Plain gradient descent, one loss a step."""
    for loss in losses:
        slopes = gradient(loss, leaves)
        leaves = [leaf - step_size * slope for leaf, slope in zip(leaves, slopes, strict=True)]
    return leaves

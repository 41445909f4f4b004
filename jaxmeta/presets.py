"""Settings that are known to work, by name."""

from pathlib import Path

from jaxmeta.config import InnerConfig, OuterConfig, TrainConfig, ValidationConfig
from jaxmeta.kinds import ct
from jaxmeta.kinds.images import ImagesConfig
from jaxmeta.kinds.views import DataConfig, FieldConfig, ViewsConfig
from jaxmeta.rendering import Sampling


def _class_preset(class_name: str, sampling: Sampling = ViewsConfig.sampling) -> TrainConfig:
    return TrainConfig(
        run=Path(f"runs/{class_name}s"),
        signal=ViewsConfig(data=DataConfig(class_name=class_name), sampling=sampling),
        # A high rate that decays learns soonest; benchmarks/recipe.md has what was tried.
        outer=OuterConfig(learning_rate=2e-3, schedule="cosine"),
    )


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "toy": (
        "toy cars, small enough for a CPU",
        TrainConfig(
            run=Path("runs/toy"),
            signal=ViewsConfig(
                data=DataConfig(root=Path("data/toy"), class_name="toycar"),
                field=FieldConfig(width=64, depth=4, num_frequencies=10, max_log2_frequency=5.0),
                sampling=Sampling(near=2.8, far=5.2, num_samples=32),
            ),
            inner=InnerConfig(num_rays=64, step_size=1.0),
            outer=OuterConfig(num_steps=300, num_scenes=2, learning_rate=8e-3, schedule="cosine"),
            validation=ValidationConfig(every=150, num_scenes=4, num_steps=32),
            log_every=20,
            checkpoint_every=150,
        ),
    ),
    # The original's other 64 samples are worth less than the scenes that their arithmetic is enough for; see there.
    "cars": ("ShapeNet cars", _class_preset("car", Sampling(num_samples=64))),
    "chairs": ("ShapeNet chairs", _class_preset("chair")),
    "lamps": ("ShapeNet lamps", _class_preset("lamp")),
    "original": (
        "ShapeNet cars with the exact settings of the original 100-line script",
        TrainConfig(
            run=Path("runs/original"),
            signal=ViewsConfig(
                field=FieldConfig(density_activation="relu", compute_dtype="float32"),
                sampling=Sampling(last_interval=1e10),
                pixel_centre=0.0,
            ),
            outer=OuterConfig(num_steps=100_000, num_scenes=1, learning_rate=5e-5),
            validation=ValidationConfig(every=2000),
        ),
    ),
    "images": (
        "pictures; without --data.root, faces that are drawn",
        TrainConfig(
            run=Path("runs/images"),
            signal=ImagesConfig(),
            inner=InnerConfig(num_steps=2, num_rays=None, step_size=1e-2),
            outer=OuterConfig(algorithm="maml", num_steps=2000, num_scenes=8, learning_rate=5e-5, schedule="cosine"),
            validation=ValidationConfig(every=100, num_scenes=32, num_steps=2, query=(0,)),
            checkpoint_every=500,
        ),
    ),
    "images-paper": (
        "pictures, with the settings of the paper's authors",
        TrainConfig(
            run=Path("runs/images-paper"),
            signal=ImagesConfig(),
            inner=InnerConfig(num_steps=2, num_rays=None, step_size=1e-2),
            outer=OuterConfig(algorithm="maml", num_steps=150_000, num_scenes=3, learning_rate=1e-5),
            validation=ValidationConfig(every=500, num_scenes=32, num_steps=2, query=(0,)),
        ),
    ),
    "ct": (
        "CT slices; without --data.root, Shepp-Logan phantoms that are drawn",
        TrainConfig(
            run=Path("runs/ct"),
            signal=ct.CTConfig(),
            inner=InnerConfig(num_steps=12, num_rays=20, step_size=3.0),
            outer=OuterConfig(num_steps=5000, num_scenes=4, learning_rate=5e-4, schedule="cosine"),
            validation=ValidationConfig(every=250, num_steps=100, support=(0, 32, 64, 96), query=(0,)),
        ),
    ),
    "ct-paper": (
        "CT slices, with the settings of the paper's authors",
        TrainConfig(
            run=Path("runs/ct-paper"),
            signal=ct.CTConfig(field=ct.FieldConfig(compute_dtype="float32")),
            inner=InnerConfig(num_steps=12, num_rays=20, step_size=10.0),
            outer=OuterConfig(num_steps=100_000, num_scenes=1, learning_rate=5e-5),
            validation=ValidationConfig(every=2000, num_steps=100, support=(0, 32, 64, 96), query=(0,)),
        ),
    ),
}

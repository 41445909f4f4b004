"""Settings that are known to work, by name."""

from pathlib import Path

from jaxmeta.config import DataConfig, FieldConfig, InnerConfig, OuterConfig, TrainConfig, ValidationConfig
from jaxmeta.rendering import Sampling


def _class_preset(class_name: str) -> TrainConfig:
    return TrainConfig(run=Path(f"runs/{class_name}s"), data=DataConfig(class_name=class_name))


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "toy": (
        "toy cars, small enough for a CPU",
        TrainConfig(
            run=Path("runs/toy"),
            data=DataConfig(root=Path("data/toy"), class_name="toycar"),
            field=FieldConfig(width=64, depth=4, num_frequencies=10, max_log2_frequency=5.0),
            sampling=Sampling(near=2.8, far=5.2, num_samples=32),
            inner=InnerConfig(num_rays=64, step_size=1.0),
            outer=OuterConfig(num_steps=300, num_scenes=2, learning_rate=8e-3, schedule="cosine"),
            validation=ValidationConfig(every=150, num_scenes=4, num_steps=32),
            log_every=20,
            checkpoint_every=150,
        ),
    ),
    "cars": ("ShapeNet cars", _class_preset("car")),
    "chairs": ("ShapeNet chairs", _class_preset("chair")),
    "lamps": ("ShapeNet lamps", _class_preset("lamp")),
    "original": (
        "ShapeNet cars with the exact settings of the original 100-line script",
        TrainConfig(
            run=Path("runs/original"),
            field=FieldConfig(density_activation="relu", compute_dtype="float32"),
            sampling=Sampling(last_interval=1e10),
            pixel_centre=0.0,
            outer=OuterConfig(num_steps=100_000, num_scenes=1, learning_rate=5e-5),
            validation=ValidationConfig(every=2000),
        ),
    ),
}

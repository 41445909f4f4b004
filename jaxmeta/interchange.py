"""Moves initialisations between runs, files that any program reads, and the networks of other code.

    python -m jaxmeta.interchange export RUN FILE.safetensors
    python -m jaxmeta.interchange import FILE RUN

An exported file is read without jaxmeta:

    import json
    from safetensors import safe_open
    with safe_open("cars.safetensors", framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
        params = {name: file.get_tensor(name) for name in file.keys()}

`import` reads the same, and npz of plain arrays; `initialisations.py` states the networks that it knows.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import safetensors.numpy
import tyro

from jaxmeta import __version__, checkpoints, configfiles, initialisations, metalearning, optimisers, runfiles
from jaxmeta import config as configs
from jaxmeta.config import TrainConfig
from jaxmeta.errors import InputError, StorageError, run_command
from jaxmeta.initialisations import FORMAT, VERSION, Density
from jaxmeta.kinds.views import ViewsConfig
from jaxmeta.loading import load_initialisation
from jaxmeta.metalearning import Initialisation


def main() -> None:
    """Exports or imports, as the command line says."""
    commands = {"export": export_run, "import": import_run}
    tyro.extras.subcommand_cli_from_dict(commands, prog="python -m jaxmeta.interchange")


def export_run(run: tyro.conf.Positional[Path], file: tyro.conf.Positional[Path]) -> None:
    """Write the newest sound initialisation of a run, and its config, to a safetensors file.

    Args:
      run: folder of a run of train.py.
      file: to write.
    """
    if file.suffix != ".safetensors":
        raise InputError(f"{file} must end in .safetensors, which is what is written")
    settings = configfiles.load(run / "config.json")
    step, learned = load_initialisation(run, settings)
    arrays = initialisations.named_arrays(jax.device_get(learned))
    metadata = {"format": FORMAT, "version": VERSION, "jaxmeta": __version__, "step": str(step)}
    content = safetensors.numpy.save(arrays, metadata | {"config": json.dumps(configs.as_dict(settings))})
    try:
        runfiles.write_atomically(file, content)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
    print(f"{file} holds the initialisation of {run} at meta-step {step}")


def import_run(
    file: tyro.conf.Positional[Path],
    run: tyro.conf.Positional[Path],
    class_name: str | None = None,
    density: Density = "softplus",
) -> None:
    """Make a run for eval.py from an exported initialisation, or from weights of learnit or nerf-meta.

    Args:
      file: safetensors, or npz of plain arrays.
      run: folder to make; its meta-steps start from 0.
      class_name: the class of scenes; None for that of the file, or car.
      density: of nerf-meta's weights: relu if they are of its first version.
    """
    if (run / "config.json").exists() or (run / "checkpoints").exists():
        raise InputError(f"{run} holds a run already; give another folder")
    found = initialisations.read(file, density)
    settings = dataclasses.replace(found.settings, run=run)
    if class_name:
        settings = _of_class(settings, class_name)
    runfiles.claim_run(settings)
    _save(settings, jax.tree.map(jnp.asarray, found.params), found.origin)
    print(f"{run} holds the initialisation of {found.origin}; python eval.py {run} evaluates it")


def _of_class(settings: TrainConfig, class_name: str) -> TrainConfig:
    signal = settings.signal
    if not isinstance(signal, ViewsConfig):
        raise InputError(f"--class-name {class_name} is for scenes seen in views; the file holds {signal.kind}")
    data = dataclasses.replace(signal.data, class_name=class_name)
    return dataclasses.replace(settings, signal=dataclasses.replace(signal, data=data))


def _save(settings: TrainConfig, initialisation: Initialisation, origin: str) -> None:
    """Writes the first checkpoint of a run."""
    about = {"config": configs.as_dict(settings), "data": None, "imported": origin}
    state = metalearning.initial_state(initialisation, optimisers.outer_optimiser(settings.outer))
    with checkpoints.open_checkpoints(settings.run) as saved:
        checkpoints.save(saved, state, about)
        checkpoints.finish(saved)


if __name__ == "__main__":
    run_command(main)

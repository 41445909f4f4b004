"""The one-way floor plan: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxmeta"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
COMMANDS = {module for module, path in MODULES.items() if 'if __name__ == "__main__":' in path.read_text()}
OTHERS = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.py"), *ROOT.glob("data_scripts/*.py")]}

NUMERICAL_CORE = {
    "sines": set(),
    "encoding": {"sines"},
    "cameras": set(),
    "metalearning": set(),
    "devices": {"errors"},
    "feeding": {"devices"},
    "fields": {"encoding", "sines"},
    "rendering": {"cameras"},
    "tomography": set(),
    "samples": set(),
    "blocked": {"encoding", "fields", "metalearning", "sines"},
    "objectives": {"cameras", "rendering", "samples", "tomography"},
    "signals": {"errors", "feeding", "metalearning", "rendering"},
    "training": {"devices", "feeding", "metalearning"},
    "evaluation": {"devices", "metalearning"},
}
"""What a module may know of the package."""

ONE_PLACE = {
    "flax": {"fields"},
    "orbax": {"checkpoints"},
    "tyro": {"config", "protocols"} | COMMANDS,
    "dm_pix": {"evaluation"},
    "matplotlib": {"figures", "curves"},
    "viser": {"viewer.page"},
    "skimage": {"isosurfaces"},
    "trimesh": {"isosurfaces"},
}
"""In which of the package's modules a library may be imported."""


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports; `from jaxmeta import x` counts as jaxmeta.x."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            from_package = node.module == "jaxmeta"
            names |= {f"jaxmeta.{alias.name}" for alias in node.names} if from_package else {node.module or ""}
    return names


def inner_imports(module: str) -> set[str]:
    """The modules of the package that one of them imports."""
    names = {name.removeprefix("jaxmeta.") for name in imported(MODULES[module]) if name.startswith("jaxmeta.")}
    return names & MODULES.keys()


@pytest.mark.parametrize("module", NUMERICAL_CORE)
def test_the_numerical_core_knows_only_what_is_below_it(module):
    assert inner_imports(module) <= NUMERICAL_CORE[module]


def test_metalearning_knows_nothing_of_scenes():
    assert {name.split(".")[0] for name in imported(MODULES["metalearning"])} <= {
        "collections", "functools", "typing", "jax", "jaxtyping", "optax"
    }  # fmt: skip


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_library_has_one_place(library):
    users = {module for module, path in MODULES.items() if library in {name.split(".")[0] for name in imported(path)}}
    assert users <= ONE_PLACE[library]


def test_commands_use_these_libraries_through_the_package():
    for name, path in OTHERS.items():
        libraries = {library.split(".")[0] for library in imported(path)}
        refused = {"flax", "orbax"} if name.startswith("data_scripts") else ONE_PLACE.keys() - {"tyro"}
        assert not libraries & refused, name


def test_nothing_imports_the_entry_points():
    entry_points = {path.stem for path in OTHERS.values()}
    for module, path in MODULES.items():
        assert not {name.split(".")[0] for name in imported(path)} & entry_points, module
        assert not inner_imports(module) & COMMANDS, module


def test_imports_never_run_in_a_circle():
    edges = {module: inner_imports(module) for module in MODULES}
    while edges:
        lowest = {module for module, below in edges.items() if not below & edges.keys()}
        assert lowest, f"a circle among {sorted(edges)}"
        edges = {module: below for module, below in edges.items() if module not in lowest}


def test_no_junk_drawers():
    assert not {module.split(".")[-1] for module in MODULES} & {"utils", "helpers", "common", "misc", "registry"}

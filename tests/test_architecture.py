"""The house's rules: who may import whom, and how files are written."""

import ast
import pathlib
import re

import pytest

from tests.conftest import ROOT

PACKAGES = ("configs", "tfrecords", "data_pipeline", "trainer")
MAY_IMPORT = {
    "configs": {"configs"},
    # Only the errors, and the command line of its one program.
    "tfrecords": {"tfrecords", "configs.errors", "configs.cli", "configs.progress"},
    "data_pipeline": {"data_pipeline", "configs", "tfrecords"},
    "trainer": {"trainer", "configs", "tfrecords"},
}
# Inside trainer, from top to bottom: a module imports its own room or lower floors.
PROGRAMS = {
    *("train", "evaluate", "generate", "demo", "predict", "export"),
    *("plan", "advise", "report", "doctor", "forever", "study"),
}
FLOORS = (
    PROGRAMS,
    {"reporting", "exporting", "evaluation", "generation", "planning", "training"},
    {"callbacks"},
    {"checkpoints", "run_dir"},
    {"tasks"},
    {"optimizers", "models", "runtime"},
)


def modules() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def imports(path: pathlib.Path) -> set[str]:
    """Full names of our modules that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            found.add(str(node.module))
    names = {module_name(p) for p in modules()} | set(PACKAGES)
    return {name for name in found if name in names}


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_packages_import_only_what_they_may():
    for path in modules():
        package = path.relative_to(ROOT).parts[0]
        for name in imports(path) - set(PACKAGES):
            parents = {name, name.split(".")[0]}
            assert parents & MAY_IMPORT[package], f"{path} imports {name}"


def test_the_trainer_is_layered():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in (ROOT / "trainer").rglob("*.py"):
        importer = module_name(path).split(".")[1]
        if importer == "__init__":
            continue
        for name in imports(path):
            package, *inner = name.split(".")
            if package != "trainer" or not inner:
                continue
            assert floor[importer] <= floor[inner[0]], f"{path} -> {name}"
            assert inner[0] not in PROGRAMS, f"{path} -> {name}"


def test_no_cycles():
    graph = {module_name(path): imports(path) for path in modules()}
    done, active = set(), []

    def visit(name):
        assert name not in active, f"cycle: {active} -> {name}"
        if name in done or name not in graph:
            return
        active.append(name)
        for other in graph[name]:
            visit(other)
        done.add(active.pop())

    for name in graph:
        visit(name)


def names(path: pathlib.Path) -> set[str]:
    """Every name, attribute and imported module of a file, private ones included."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            result.add(node.id)
        elif isinstance(node, ast.Attribute):
            result.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            result |= {part for alias in node.names for part in alias.name.split(".")}
            result |= set((getattr(node, "module", None) or "").split("."))
    return result


@pytest.mark.parametrize(
    ("pattern", "rooms"),
    [
        (r"TPU\w*|\w*MirroredStrategy|OneDeviceStrategy", ["trainer/runtime"]),
        (
            r"(TF)?GPT2\w+",
            ["trainer/models/gpt2", "trainer/models/algpt2", "trainer/exporting"],
        ),
        (r"(TF)?XLNet\w+", ["trainer/models/xlnet"]),
        (r"jax|jaxlib|mlir", ["trainer/planning"]),
        (r"google|api_core", ["tfrecords/storage"]),
    ],
)
def test_what_only_one_room_may_name(pattern, rooms):
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        # GPT-2's tokenizer, the default of what the pipeline trains, is no network.
        if place.startswith((*rooms, "data_pipeline/tokens", "tfrecords/encoding")):
            continue
        named = {name for name in names(path) if re.fullmatch(pattern, name)}
        assert not named, f"{place} names {named}"


def test_packages_have_empty_inits():
    for path in modules():
        assert path.stem != "__init__" or path.read_text() == "", path


def test_private_parts_of_tensorflow_stand_in_three_modules():
    """The plan's all-reduce, the barrier, and the options of a device's batches."""
    modules = ("compilation", "recompute", "distributed_input")
    for path in (ROOT / "trainer").rglob("*.py"):
        text = path.read_text()
        if "tensorflow.compiler" in text or "tensorflow.python" in text:
            assert path.stem in modules, path

"""The house's rules: who may import whom, and how files are written."""

import ast
import pathlib

from tests.conftest import ROOT

PACKAGES = ("configs", "tfrecords", "data_pipeline", "trainer")
MAY_IMPORT = {
    "configs": {"configs"},
    "tfrecords": {"tfrecords"},
    "data_pipeline": {"data_pipeline", "configs", "tfrecords"},
    "trainer": {"trainer", "configs", "tfrecords"},
}
# Inside trainer, a module imports its own layer or a lower one; entry points import
# no other entry point. A folder is of one layer.
ENTRY_POINTS = {
    "train",
    "evaluate",
    "generate",
    "export",
    "plan",
    "report",
    "doctor",
    "forever",
}
MIDDLE = {
    "task",
    "checkpoint",
    "state",
    "callbacks",
    "strategy",
    "optimizer",
    "pretrained",
    "hardware",
    "cluster",
    "preemption",
    "compiler",
    "evaluation",
    "exporting",
    "generation",
    "reporting",
    "tracking",
}
BASE = {
    "model",
    "forward",
    "layers",
    "adafactor",
    "schedule",
    "flops",
    "host_memory",
    "memorisation",
    "cloud",
}


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
        used = {name.split(".")[0] for name in imports(path)}
        assert used <= MAY_IMPORT[package], f"{path} imports {used}"


def test_the_trainer_is_layered():
    layers = dict.fromkeys(ENTRY_POINTS, 2)
    layers |= dict.fromkeys(MIDDLE, 1) | dict.fromkeys(BASE, 0)
    for path in (ROOT / "trainer").rglob("*.py"):
        importer = module_name(path).split(".")[1]
        if importer == "__init__":
            continue
        for name in imports(path):
            package, *inner = name.split(".")
            if package != "trainer" or not inner:
                continue
            assert layers[inner[0]] <= layers[importer], f"{path} -> {name}"
            assert inner[0] not in ENTRY_POINTS, f"{path} -> {name}"


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


def test_only_strategy_names_hardware():
    for path in (ROOT / "trainer").rglob("*.py"):
        if path.stem == "strategy":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert "TPU" not in node.attr, path
                assert "MirroredStrategy" not in node.attr, path


def test_packages_have_empty_inits():
    for path in modules():
        assert path.stem != "__init__" or path.read_text() == "", path


def test_private_jax_and_xla_stand_where_the_tpu_compiler_is_used():
    """And in `recompute`, for the barrier that has no public name."""
    for path in (ROOT / "trainer").rglob("*.py"):
        text = path.read_text()
        if "jax" in text.replace("jaxlib", ""):
            assert path.stem in ("tpu_compiler", "doctor"), path
        if "tensorflow.compiler" in text or "tensorflow.python" in text:
            assert path.stem in ("compilation", "recompute"), path

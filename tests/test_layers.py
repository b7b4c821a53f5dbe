"""The rooms of the house: imports go down only, and rooms of one storey do not know each other."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jclip"
LAYERS = (
    {"config"},
    {"tree", "hlo", "files", "help", "arguments", "embedding", "clock"},
    {
        "parser",
        "models",
        "losses",
        "optim",
        "sharding",
        "data",
        "metrics",
        "processes",
        "hlo_time",
        "interconnect",
        "memory",
        "peaks",
        "digests",
        "keeping",
        "lock",
        "signals",
    },
    {"bucket"},
    {"bucket_lock"},
    {
        "mirror",
        "saved_digests",
        "checkpoint",
        "compiled",
        "encode",
        "weights",
        "objectives",
        "eval",
        "facts",
        "captioning",
        "topology",
    },
    {"state", "parts", "adapt"},
    {"learner"},
    {"step", "operations"},
    {"program"},
    {"clip"},
    {"runs", "results", "estimate"},
    {
        "train",
        "resume",
        "greeting",
        "workdir",
        "init_from",
        "evaluate",
        "caption",
        "classify",
        "inference",
        "embed",
        "embed_blocks",
        "convert",
        "pack",
        "info",
        "compile",
        "sweep",
        "report",
    },
    {"filter", "adaptation"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SAME_STOREY = {
    ("checkpoint", "saved_digests"),
    ("train", "evaluate"),
    ("train", "resume"),
    ("train", "greeting"),
    ("train", "workdir"),
    ("workdir", "resume"),
    ("resume", "init_from"),
    ("evaluate", "inference"),
    ("caption", "inference"),
    ("classify", "inference"),
    ("embed", "inference"),
    ("embed_blocks", "embed"),
    ("embed_blocks", "inference"),
    ("convert", "inference"),
}  # (who, whom): the only doors there
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")  # it is lazy


def imported(source: str) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file: "jclip.data", "jclip.data.loader", "numpy"."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide which room is meant"
            names |= {f"jclip.{alias.name}" for alias in node.names} if node.module == "jclip" else {str(node.module)}
    return names


def forbidden(room: str, names: set[str]) -> set[str]:
    """The rooms among `names` that `room` must not import."""
    rooms = {name.split(".")[1] for name in names if name.startswith("jclip.")} - {room, "__version__"}
    assert rooms <= LEVEL.keys(), f"{rooms - LEVEL.keys()} of jclip is in no layer; give it one in LAYERS"
    return {other for other in rooms if LEVEL[other] >= LEVEL[room] and (room, other) not in SAME_STOREY}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_only_go_down(path):
    room = path.parts[0].removesuffix(".py")
    assert room in LEVEL, f"jclip/{path} is in no layer; give it one in LAYERS"
    assert not forbidden(room, imported((PACKAGE / path).read_text()))


def test_no_module_needs_itself():
    """Imports of functions count too; those for types alone do not, and a package is what its __init__ says."""
    names = {path: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    needs = {name: needed((PACKAGE / path).read_text(), set(names.values())) - {name} for path, name in names.items()}
    # The texts of shapes*.py are the fingerprint of what they draw, by which runs know their data: they stay as they are.
    needs["data.shapes"].remove("data.shapes_selection")
    assert needs["data.storage"] >= {"data.local_files", "data.ways"}  # the second in a function
    TopologicalSorter(needs).prepare()


def needed(source: str, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere but under TYPE_CHECKING."""
    found, todo = set(), [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jclip"):
            module = (node.module or "").removeprefix("jclip").lstrip(".")
            names = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {name if name in modules else module for name in names}
        todo += ast.iter_child_nodes(node)
    return found & modules


def test_losses_import_jax_alone():
    for path in (PACKAGE / "losses").glob("*.py"):
        names = {name for name in imported(path.read_text()) if not name.startswith("jclip.losses")}
        assert {name.split(".")[0] for name in names} <= {"jax", "collections", "dataclasses", "functools", "math", "typing"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "config").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_config_room_opens_without_jax(path):
    assert not {name.split(".")[0] for name in imported(path.read_text())} & {"jax", "flax", "optax", "grain", "numpy"}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("losses", "from jclip.data import Source"),
        ("data", "import jclip.models.text"),
        ("eval", "from jclip.state import TrainState"),
        ("config", "def f():\n    from jclip import tree"),
        ("evaluate", "from jclip import train"),
    ],
)
def test_a_door_that_must_not_be_is_found(room, line):
    assert forbidden(room, imported(line))


def test_what_is_not_used_is_not_imported():
    """A model is loaded without checkpoints, evaluations, objectives and the readers of other libraries' weights."""
    code = "import sys, jclip; jclip.load; print(*(name for name in sys.modules if name.startswith('jclip.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    names = done.stdout.split()
    assert len(names) <= len(FILES) // 3
    rooms = {name.split(".")[1] for name in names}
    assert not rooms & {"checkpoint", "eval", "objectives", "losses", "optim", "weights", "train", "step"}
    code = "import sys, jclip.losses; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {name.split(".")[0] for name in done.stdout.split()} & {"flax", "optax", "orbax", "grain", "PIL"}
    code = "import sys, jclip; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {name.split(".")[0] for name in done.stdout.split()} & {"jax", "numpy"}


def test_no_two_classes_share_a_name():
    """A name says which class is meant; jax's mesh is one of them."""
    files = {"Mesh": ["jax.sharding"]}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in files.items() if len(where) > 1} == {}

"""The shape of the code: imports run one way, nothing heavy is imported early, nothing of this machine is named."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import cltk

ROOT = Path(cltk.__file__).parent
LAYERS = [
    {"errors", "secrets"},
    {"files", "ranks", "tensors", "progress"},
    {"data"},
    {"assets", "forward", "models"},
    {"importance", "measure"},
    {"mitigate"},
    {"hosts"},
    {"run"},
    {"logs"},
    {"report"},
    {"cli", "lm_eval"},
    {"__main__"},
]
APART = [{"measure", "mitigate"}, {"measure", "importance"}]
# the reporter may read records and use the statistics; the command line may use everything


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(file: Path) -> set[str]:
    """The parts of cltk that a file imports at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "cltk" else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("cltk.") and name.split(".")[1] != "__version__"}
    return found


def test_imports_run_one_way() -> None:
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in imports(file) - {part}:
            if layer(other) > layer(part) or {part, other} in APART:
                wrong.append(f"{file.relative_to(ROOT)} imports cltk.{other}")
    assert not wrong


def loaded(node: ast.AST, modules: set[str]) -> set[str]:
    """The modules of cltk that code under a node imports at any depth; `if TYPE_CHECKING:` loads nothing."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return set()
    found = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    if isinstance(node, ast.ImportFrom) and node.module:
        whole = {f"{node.module}.{alias.name}" for alias in node.names}
        found = (whole & modules) | ({node.module} if whole - modules else set())
    return (found & modules).union(*(loaded(child, modules) for child in ast.iter_child_nodes(node)))


def test_no_circles_between_modules_however_late_they_import() -> None:
    """A package's `__init__` lists what the package offers, and is not part of a circle."""
    modules = {
        ".".join(["cltk", *file.relative_to(ROOT).with_suffix("").parts]): file
        for file in ROOT.rglob("*.py")
        if file.name != "__init__.py"
    }
    graph = {name: loaded(ast.parse(file.read_text()), set(modules)) - {name} for name, file in modules.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, cltk, cltk.cli; cltk.cli.parser().format_help();"
        "heavy = ('torch', 'transformers', 'numpy', 'scipy', 'lm_eval', 'datasets', 'pydantic', 'rich');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rooms_are_small() -> None:
    """Lines of a file; of a function those behind its signature and docstring."""
    sizes, long = [], {str(file): n for file in ROOT.rglob("*.py") if (n := file.read_text().count("\n")) > 250}
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                sizes.append((node.end_lineno or 0) - first.lineno + 1)
    assert not long
    assert max(sizes) <= 60
    assert sorted(sizes)[len(sizes) // 2] <= 10
    assert len([path for path in ROOT.iterdir() if path.name != "__pycache__"]) <= 22


def test_public_names() -> None:
    assert all(hasattr(cltk, name) for name in cltk.__all__)
    assert {
        "attach",
        "measure",
        "fisher",
        "load",
        "report",
        "MITIGATORS",
        "LowLR",
        "EarlyStopping",
        "Replay",
        "EWC",
        "L2SP",
        "KL",
    } <= set(cltk.__all__)
    importlib.import_module("cltk.measure.stats")
    importlib.import_module("cltk.report.tables")
    assert callable(cltk.measure)
    assert callable(cltk.report)


def test_no_index_host_and_no_path_of_a_machine() -> None:
    words = ["pypi." + "org", "registry.npmjs" + ".org", "files.pythonhosted" + ".org", "/wor" + "k/", "/ro" + "ot/"]
    files = subprocess.run(["git", "ls-files"], cwd=ROOT.parent, capture_output=True, text=True, check=True).stdout.split()
    suffixes = (".py", ".md", ".yaml", ".cfg", ".toml", ".json", ".txt", ".sh", "Makefile")
    named = [
        f"{file}: {word}"
        for file in files
        if file.endswith(suffixes) and (ROOT.parent / file).is_file()
        for word in words
        if word in (ROOT.parent / file).read_text(errors="ignore")
    ]
    assert not named


def test_test_files_have_names_of_their_own() -> None:
    """Folders of tests are no packages: pytest knows a file by its name alone."""
    names = [file.name for file in (ROOT.parent / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})

"""Imports point one way, and what is heavy is imported where it is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

PACKAGE = Path(__file__).parent.parent / "smc"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of smc, besides itself. cli and smc/__init__.py know all.
ALLOWED = {
    "ir": {"errors", "generation"},
    "frontend": {"errors", "fields", "generation", "ir"},
    "passes": {"distribution", "errors", "ir"},
    "reference": {"errors", "ir"},
    "targets": {"errors", "ir"},
    "export": {"errors", "frontend", "ir", "passes"},
    # of runtime: chat templates, as the model will see them
    "training": {"errors", "ir", "passes", "reference", "runtime"},
    # of runtime: what it promises is done at compile time
    "codegen": {"distribution", "errors", "folders", "generation", "ir", "runtime", "standalone", "structured",
                "targets"},
    "standalone": {"errors", "ir", "runtime", "structured"},
    "runtime": {"errors", "fields", "generation"},
    "generation": {"errors", "fields"},
    "fields": {"errors"},
    # compiling needs smc itself, imported there
    "model_cache": {"distribution", "errors", "folders"},
    "structured": {"errors", "runtime"},
    "serve": {"distribution", "errors", "generation", "runtime", "structured"},
    "llama": {"errors", "model_cache", "runtime", "structured"},
    "pages": {"errors", "ir", "runtime", "steps"},
    "steps": {"errors", "ir", "passes", "reference", "training"},
    # the whole way of a model, imported from smc itself
    "sweep": {"distribution", "errors", "ir", "passes", "reference", "runtime"},
    "errors": set[str](),
    "folders": set[str](),
    "distribution": {"errors"},
}
# The same for the folders of codegen; `plan/planner.py` alone knows ops, which know the plan's dataclasses.
INSIDE_CODEGEN = {
    "kernels": set[str](),
    "plan": {"kernels"},
    "ops": {"kernels", "plan"},
    "schedule": {"kernels", "plan"},
    "program": {"kernels", "plan", "schedule"},
}
RUNTIME_NEEDS = {"jinja2", "numpy", "tokenizers"}
HEAVY = {"gguf", "huggingface_hub", "networkx", "safetensors", "torch", "transformers", "tvm"}
COMPILER_ONLY = HEAVY | {"tvm_ffi", "yaml", "ziglang"}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it, relative ones resolved."""
    package = [*path.relative_to(PACKAGE.parent).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from smc import ir` imports smc.ir.
            yield from ((f"smc.{alias.name}" for alias in node.names) if module == "smc" else (module,))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part not in ALLOWED:
        assert part in {"__init__", "__main__", "cli"}, f"say in ALLOWED what {part} may import"
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("smc.")} - {part}
    assert used <= ALLOWED[part]
    if part not in ("model_cache", "sweep"):
        assert "smc" not in set(imports(path)), "importing smc itself would make every part depend on all"


def test_kernels_are_data_that_know_no_backend() -> None:
    """What a kernel computes is shared by all backends: no tvm, no machine, no other part of codegen."""
    used = {name for path in (PACKAGE / "codegen" / "kernels").rglob("*.py") for name in imports(path)}
    ours = {".".join(name.split(".")[1:3]) for name in used if name.startswith("smc.")}
    assert ours <= {"codegen.kernels", "errors", "ir", "ir.encoding"}
    assert not used & HEAVY


def module_name(path: Path) -> str:
    """The dotted name of a file of smc."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def run_time_imports(path: Path) -> Iterator[str]:
    """The modules of smc that a module imports, wherever in it, but not those for type checkers only."""
    names = {module_name(module) for module in MODULES}
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module in names:
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in names else node.module for name in full)
        waiting += ast.iter_child_nodes(node)


def test_there_are_no_circles() -> None:
    graph = networkx.DiGraph()
    for path in MODULES:
        graph.add_edges_from((module_name(path), name) for name in run_time_imports(path))
    assert graph.number_of_edges() > len(MODULES)
    assert [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_benchmarks_import_no_tests() -> None:
    """Tests import benchmarks, never the other way round."""
    found = {path: set(imports(path)) for path in (PACKAGE.parent / "benchmarks").glob("*.py")}
    assert len(found) > 10
    assert [path for path, names in found.items() if any(name.split(".")[0] == "tests" for name in names)] == []


C_FILES = sorted(path for part in ("runtime", "standalone") for path in (PACKAGE / part).rglob("*.[ch]"))


def test_c_headers_have_no_circles() -> None:
    graph = networkx.DiGraph()
    for path in C_FILES:
        text = path.read_text(encoding="utf-8")
        graph.add_edges_from((path.name, name) for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE))
    assert [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_c_files_call_each_other_one_way() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in C_FILES if path.suffix == ".c"}
    defined = re.compile(r"^(?!static|typedef)[a-z][\w *]*?\b(\w+)\([^;{]*\) ?\{", re.MULTILINE)
    homes = {function: file for file, text in texts.items() for function in defined.findall(text)}
    assert homes["smc_fail"] == "errors.c"
    graph = networkx.DiGraph()
    for file, text in texts.items():
        used = {homes[name] for name in re.findall(r"\w+", text) if name in homes}
        graph.add_edges_from((file, other) for other in used - {file})
    assert [circle for circle in networkx.strongly_connected_components(graph) if len(circle) > 1] == []


@pytest.mark.parametrize("folder", INSIDE_CODEGEN)
def test_codegen_points_one_way(folder: str) -> None:
    allowed = INSIDE_CODEGEN[folder] | {folder}
    for path in (PACKAGE / "codegen" / folder).rglob("*.py"):
        if path.name != "planner.py":
            names = [name.split(".") for name in imports(path) if name.startswith("smc.codegen.")]
            folders = {name[2] for name in names if (PACKAGE / "codegen" / name[2]).is_dir()}
            assert folders <= allowed, path


def test_runtime_needs_only_what_a_device_has() -> None:
    used = {name.split(".")[0] for path in (PACKAGE / "runtime").rglob("*.py") for name in imports(path)}
    assert used - set(sys.stdlib_module_names) - {"smc"} <= RUNTIME_NEEDS


def loaded_after(statements: str) -> set[str]:
    """Top-level modules in sys.modules after a fresh interpreter ran the statements."""
    code = f"import sys\n{statements}\nprint('modules:', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return {name.split(".")[0] for name in run.stdout.rpartition("modules:")[2].split()}


@pytest.mark.parametrize(
    "statements",
    [
        "import smc",
        "import smc.runtime",
        "from smc.cli.main import run; run(['--help'])",
        "from smc.cli.main import run; run(['compile', '--help'])",
    ],
)
def test_light_imports(statements: str) -> None:
    assert not loaded_after(statements) & HEAVY


def test_import_smc_is_nearly_empty() -> None:
    assert not loaded_after("import smc") & {"click", "jinja2", "numpy", "rich", "tokenizers"}


def test_the_help_needs_what_commands_are_made_of_only() -> None:
    loaded = loaded_after("from smc.cli.main import run; run(['--help'])")
    assert not loaded & {"jinja2", "numpy", "rich", "tokenizers"}


def test_runtime_works_where_only_the_base_is_installed() -> None:
    blocked = f"sys.modules.update(dict.fromkeys({sorted(COMPILER_ONLY)!r}))\n"  # None: importing it fails
    commands = "from smc.cli.main import run\nassert run(['--help']) == 0\nassert run(['targets', '--json']) == 0\n"
    loaded_after(f"{blocked}import smc.runtime\n{commands}")

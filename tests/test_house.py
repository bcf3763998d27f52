"""The house: where files stand, and which way imports run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

OWN = ("utils", "checks", "published", "benchmarks")
STAGES = {
    *(
        "fetch_data",
        "generate_model_activations",
        "train_saes",
        "generate_sae_activations_optimized",
    ),
    *("train_baselines", "train_sae_probes", "train_multi_token_probes", "visualize"),
    *("export_probe", "score_texts", "explain_probes"),
}
# A module may import from its own line and from those below it.
FLOORS = (
    ("notebook", "exported_probes"),
    ("figures",),
    ("results",),
    ("probes",),
    ("saes",),
    ("language_models", "gguf_models", "activations", "cli", "text_checks"),
    ("datasets", "models"),
    ("readers",),
    ("paths",),
    ("settings", "names"),
    ("runtime",),
)
LEVEL = {room: -level for level, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (
        *ROOT.glob("*.py"),
        *(file for folder in OWN for file in (ROOT / folder).rglob("*.py")),
    )
    if path.name != "__init__.py"
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module of ours, whether it is imported inside a function) of each import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] in (*OWN, *STAGES):
                yield name, id(node) in inner


def test_the_pipeline_stands_alone_at_the_root():
    assert {path.stem for path in ROOT.glob("*.py")} == STAGES


@pytest.mark.parametrize("module", MODULES)
def test_our_own_modules_are_imported_at_the_top(module):
    assert [name for name, inside in imports(MODULES[module]) if inside] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("utils.")])
def test_imports_run_down(module):
    """utils/ knows nothing of scripts, and each of its rooms only its own floor and those below."""
    room = module.split(".")[1]
    for name, _ in imports(MODULES[module]):
        assert name.startswith("utils."), f"{module} imports {name}"
        assert LEVEL[name.split(".")[1]] <= LEVEL[room], (
            f"{module} imports {name}, which stands above it"
        )


def test_there_is_no_circle():
    reach = {
        module: {name for name, _ in imports(path) if name in MODULES}
        for module, path in MODULES.items()
    }
    for _ in MODULES:
        reach = {
            module: below.union(*(reach[name] for name in below)) for module, below in reach.items()
        }
    assert [module for module, below in reach.items() if module in below] == []


def test_nothing_stands_where_no_floor_is():
    assert {module.split(".")[1] for module in MODULES if module.startswith("utils.")} == set(LEVEL)

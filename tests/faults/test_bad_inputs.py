"""Every bad file of the corpus: one line that names it, the rest of the run done, an exit status,
little memory, nothing run.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import BAD, D_MODEL, D_SAE, GOOD, HOOK, N_ROWS, SAE_ID, Case, corpus
from conftest import MODEL, clear_caches, folder_flags, paths_below, write_texts
from crashes import counts_of_bad_files
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from checks.facts import read_facts
from utils.activations import write_activations
from utils.cli import EXIT_BAD_INPUT
from utils.datasets import load_dataset, load_ood
from utils.paths import Paths
from utils.runtime.devices import peak_memory
from utils.runtime.errors import UserError

CASES = corpus()
# `make test` takes the hostile ones and every third of the others, `make test-faults` all
PARAMETERS = [
    pytest.param(case, marks=() if case.hostile or i % 3 == 0 else pytest.mark.long)
    for i, case in enumerate(CASES)
]
# bytes that a run may take more than before: far less than what the files declare
GROWTH = 600 << 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A world of two datasets, one SAE, its latents and their probes."""
    root = tmp_path_factory.mktemp("finished")
    paths = paths_below(root)
    clear_caches()
    write_texts(paths, [BAD, GOOD], n_rows=N_ROWS, ood=(BAD, GOOD))
    rng = np.random.default_rng(0)
    for name in (BAD, GOOD):
        for of, ood in ((load_dataset(paths, name), False), (load_ood(paths, name), True)):
            X = torch.from_numpy(rng.normal(size=(len(of), D_MODEL)).astype(np.float32))
            write_activations(
                paths.model_activations(MODEL, name, HOOK, ood), X, of.texts, {"n_rows": len(of)}
            )
    torch.manual_seed(0)
    TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=8)).save_model(paths.saes(MODEL) / SAE_ID)
    for stage in ("generator", "train_sae_probes", "train_baselines"):
        assert run(stage, paths) == (0, "")
    return root


STAGES = {
    "generator": (
        "generate_sae_activations_optimized",
        MODEL,
        ["--setting", "normal", "--device", "cpu", "--controls", "none"],
    ),
    "generator mine": ("generate_sae_activations_optimized", "mine", []),
    "train_sae_probes": (
        "train_sae_probes",
        MODEL,
        ["--ks", "4", "--n_jobs", "1", "--target_sae_id", SAE_ID, "--controls", "none"],
    ),
    "train_baselines": (
        "train_baselines",
        MODEL,
        ["--method", "logreg", "--layer", "2", "--n_jobs", "1"],
    ),
    "train_baselines OOD": (
        "train_baselines",
        MODEL,
        ["--method", "logreg", "--setting", "OOD", "--n_jobs", "1"],
    ),
    "visualize": ("visualize", MODEL, []),
    "visualize gemma-2-9b": ("visualize", "gemma-2-9b", []),
    "extract": ("published.extract", "gemma-2-9b", []),
}


def run(stage: str, paths: Paths, capsys=None) -> tuple[int, str]:
    """(exit status, what was said): as utils.cli.run does it. Another error would be a traceback:
    it fails the test.
    """
    script, model, flags = STAGES[stage]
    clear_caches()
    try:
        status = importlib.import_module(script).main(
            ["--model_name", model, *folder_flags(paths), *flags]
        )
    except UserError as error:
        return EXIT_BAD_INPUT, f"error: {error}"
    return status, capsys.readouterr().err if capsys else ""


def redo(stage: str, paths: Paths) -> None:
    """Take away what the stage makes, so that it must read the bad file."""
    if stage == "generator":
        shutil.rmtree(paths.sae_activations_root(MODEL))
    elif stage == "train_sae_probes":
        shutil.rmtree(paths.sae_probe_table(MODEL, "normal").parent)
    elif stage == "train_baselines":
        shutil.rmtree(paths.baseline_table(MODEL, "normal", 2).parent)


def forget_peak() -> None:
    refs = Path("/proc/self/clear_refs")
    if refs.exists():
        refs.write_text("5")


@pytest.mark.parametrize("case", PARAMETERS, ids=lambda case: case.name.replace(" ", "_"))
def test_a_bad_file_gets_one_line_and_stops_nothing_else(finished, tmp_path, capsys, case: Case):
    root, canary = tmp_path / "world", tmp_path / "canary"
    shutil.copytree(finished, root, symlinks=True)
    paths = paths_below(root)
    redo(case.stage, paths)
    case.spoil(paths, canary)
    forget_peak()
    before = peak_memory()
    status, said = run(case.stage, paths, capsys)
    grown = peak_memory() - before
    assert status != 0, "a bad file must show in the exit status"
    about = [
        line
        for line in said.splitlines()
        if line.startswith(("  - ", "error: ")) and case.said in line
    ]
    assert len(about) == 1, f"one line with {case.said!r} is wanted, said was: {said}"
    assert len(about[0]) < 700
    assert "Traceback" not in said
    assert grown < GROWTH, f"{grown >> 20} MiB more memory"
    assert not canary.exists(), "something of the file was run"
    assert not list(root.rglob(".*.tmp")), "unfinished files are left"
    if status != EXIT_BAD_INPUT and not case.stage.startswith(
        ("visualize", "extract", "generator mine")
    ):
        assert list(rest_of(case.stage, paths)), "the other dataset is not done"


def rest_of(stage: str, paths: Paths) -> list[Path]:
    """What the stage makes of the good dataset."""
    if stage == "generator":
        return list(paths.sae_activations_folder(MODEL, "normal").glob(f"{GOOD}_*_X_rest_sae.pt"))
    tables = [*paths.results_dir.rglob("*_metrics.csv"), *paths.results_dir.rglob("*results.csv")]
    return [path for path in tables if GOOD in path.read_text(encoding="utf-8")]


def test_documents_count_the_corpus_as_it_is():
    kept = read_facts()
    assert counts_of_bad_files() == {name: kept[name] for name in counts_of_bad_files()}


def test_the_corpus_is_large():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.hostile for case in CASES) >= 10

"""--max_memory is kept: the generator runs under a limit of the system just above it, or says
beforehand that it cannot.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, clear_caches, folder_flags, write_texts

from utils.activations import write_activations
from utils.datasets import load_dataset
from utils.models import LanguageModel, describe_model
from utils.readers.sparse_files import load_sparse
from utils.saes.store import SaeFiles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA as Linux keeps it")
D_MODEL, D_SAE = 1024, 32_768  # 128 MiB of weights
NAMES = ["1_first", "2_second", "3_third"]
SPARE = 96 << 20  # for the products' own buffers and the interpreter
LIMITED = """
import re, resource, sys
sys.path.insert(0, sys.argv.pop(1))
most = int(sys.argv.pop(1))
import torch
import generate_sae_activations_optimized as generator
torch.randn(512, 512) @ torch.randn(512, 512)
free = generator.available_memory
def limit_and_tell(device):
    data = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + abs(most), data + abs(most)))
    return free(device) if most >= 0 else 1 << 40
generator.available_memory = limit_and_tell
from utils import cli
cli.run(generator.main)
"""


@pytest.fixture
def ready(paths):
    write_texts(paths, NAMES, n_rows=1200)
    describe_model(LanguageModel("mine", "none", D_MODEL, (3,), probe_layer=3), paths)
    rng = np.random.default_rng(0)
    for name in NAMES:
        X = torch.from_numpy(rng.normal(size=(1200, D_MODEL)).astype(np.float32))
        write_activations(
            paths.model_activations("mine", name, "blocks.3.hook_resid_post"),
            X,
            load_dataset(paths, name).texts,
            {},
        )
    folder = paths.saes("mine") / "layer_3" / "wide"
    folder.mkdir(parents=True)
    weights = rng.standard_normal((D_MODEL, D_SAE), dtype=np.float32)
    threshold = np.full(D_SAE, 80, np.float32)
    np.savez(
        folder / "params.npz", W_enc=weights, b_enc=np.zeros(D_SAE, np.float32), threshold=threshold
    )
    clear_caches()
    return paths


def run(paths, max_memory: int, spare: int = SPARE) -> subprocess.CompletedProcess:
    flags = ["--model_name", "mine", *folder_flags(paths), "--setting", "normal", "--device", "cpu"]
    flags += ["--controls", "random"]
    return subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED,
            str(ROOT),
            str(max_memory + spare),
            *flags,
            "--max_memory",
            f"{max_memory}b",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_a_limit_just_above_max_memory_is_enough(ready):
    done = run(ready, 48 << 20)
    assert done.returncode == 0, done.stderr
    rows = load_sparse(
        SaeFiles(ready, "mine", "normal", NAMES[0], "layer_3/wide").path("X_train_sae"), ""
    )
    assert rows.nnz > 0
    checks = json.loads(ready.sae_checks("mine").read_text())
    assert checks["layer_3/wide"]["d_sae"] == D_SAE


def test_a_run_that_was_promised_more_than_there_is_ends_with_one_line(ready):
    """With 8 MiB where 48 MiB were promised the run above fails: the limit binds."""
    done = run(ready, 48 << 20, spare=-(56 << 20))
    assert done.returncode == 2
    assert "error: memory ran out" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(ready.data_dir.rglob(".*.tmp"))


def test_a_run_that_cannot_fit_says_so_before_it_starts(ready):
    done = run(ready, 2 << 20)
    assert done.returncode == 2
    assert "raise --max_memory" in done.stderr
    assert not list(ready.sae_activations_root("mine").glob("*/*.pt"))
    more = run(ready, 1 << 50)
    assert more.returncode == 2
    assert "that are free: give less" in more.stderr

"""Numbers that travel: a small SAE trained by two instruction sets and two numbers of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from conftest import ROOT

TRAIN = """
import json, sys
import torch
from pathlib import Path
import train_saes
folder = Path(sys.argv[1])
rows = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
codes = torch.rand(4096, 40, generator=torch.Generator().manual_seed(1))
activations = torch.relu(codes - 0.8) @ rows
training = train_saes.Training("texts", None, 8, 4096, 25.0, None, 42, "cpu")
sae = train_saes.SaeToTrain("m", 2, 64, "x", "y")
train_saes.make_sae(activations, folder, sae, training)
print(json.dumps(json.loads((folder / "training.json").read_text())))
"""


def start(folder, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


def finished(run: subprocess.Popen) -> dict:
    said, errors = run.communicate()
    assert run.returncode == 0, errors
    return json.loads(said.splitlines()[-1])


def test_an_sae_is_as_good_on_another_processor(tmp_path):
    one = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    other = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    runs = [start(tmp_path / "a", **one), start(tmp_path / "b", OMP_NUM_THREADS="2", **other)]
    plain, wide = map(finished, runs)
    assert plain["variance_explained"] > 0.5
    assert abs(plain["variance_explained"] - wide["variance_explained"]) < 0.01
    assert abs(plain["dead_latents"] - wide["dead_latents"]) <= 4

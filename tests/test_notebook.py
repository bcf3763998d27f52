"""The notebook call takes what people have: each kind of SAE object works or gets one line."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from utils.notebook import encode, probe_sae
from utils.runtime.errors import UserError

D_MODEL, D_SAE = 6, 10
X = np.random.default_rng(0).normal(size=(300, D_MODEL)).astype(np.float32)
W = torch.tensor(np.random.default_rng(1).normal(size=(D_MODEL, D_SAE)), dtype=torch.float32)
EXPECTED = np.maximum(X @ W.numpy(), 0)


class Module(nn.Module):
    """An SAE that in training keeps the strongest latents of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(W.clone())

    def encode(self, x):
        latents = torch.relu(x @ self.W)
        return latents * (latents >= latents.max()) if self.training else latents


class Result(NamedTuple):
    latents: torch.Tensor
    indices: torch.Tensor


class Plain:
    def __init__(self, give) -> None:
        self.encode = lambda x: give(torch.relu(x @ W))


WORKS = {
    "a module in training": Module().train(),
    "a plain object": Plain(lambda z: z),
    "numpy": Plain(lambda z: z.numpy()),
    "sparse COO": Plain(lambda z: z.to_sparse()),
    "sparse CSR": Plain(lambda z: z.to_sparse_csr()),
    "float64": Plain(lambda z: z.double()),
}


@pytest.mark.parametrize("kind", WORKS)
def test_what_encodes_is_encoded(kind):
    latents = encode(WORKS[kind], X)
    assert np.allclose(latents.toarray(), EXPECTED, atol=1e-5)


def test_an_encode_that_works_in_place_spoils_nothing():
    rows = X.copy()
    encode(Plain(lambda z: z), rows)

    class InPlace:
        def encode(self, x):
            x /= x.norm()
            return torch.relu(x @ W)

    encode(InPlace(), rows)
    assert np.array_equal(rows, X)


def test_a_module_stays_as_it_was():
    module = Module().train()
    encode(module, X)
    assert module.training
    broken = Plain(lambda z: z[:, :0] / 0)
    broken.encode = lambda x: 1 / 0
    assert encode(Module().eval(), X).shape == (300, D_SAE)


def test_a_module_of_half_precision_is_read_in_its_own():
    latents = encode(Module().to(torch.bfloat16), X).toarray()
    assert np.allclose(latents, EXPECTED, atol=0.1)


FAILS = {
    "only forward": (nn.Linear(D_MODEL, D_SAE), "has no encode"),
    "a tuple": (Plain(lambda z: (z, z)), "returned a tuple"),
    "a NamedTuple": (Plain(lambda z: Result(z, z)), "returned a Result"),
    "one row": (Plain(lambda z: z[:1]), "for 128 rows"),
    "three dimensions": (Plain(lambda z: z[None]), "for 128 rows"),
    "NaN": (Plain(lambda z: z * float("nan")), "NaN or infinite"),
    "another width": (Plain(lambda z: z @ torch.ones(3, 3)), "does the SAE read this hook"),
}


@pytest.mark.parametrize("kind", FAILS)
def test_what_does_not_encode_gets_one_line(kind):
    sae, message = FAILS[kind]
    with pytest.raises(UserError, match=message) as caught:
        encode(sae, X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["imbalances", "ood_", ""])
def test_an_unknown_setting_is_an_error(setting, paths):
    with pytest.raises(UserError, match="unknown setting"):
        probe_sae(Module(), "all-MiniLM-L6-v2", "blocks.2.hook_resid_post", setting=setting)


def test_an_unknown_hook_is_one_line(paths):
    with pytest.raises(UserError, match="is no hook"):
        probe_sae(Module(), "all-MiniLM-L6-v2", "blocks.2.hook_nothing", paths=paths)

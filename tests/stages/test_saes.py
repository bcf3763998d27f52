"""`make saes`: every SAE of the registry, with the hook that is read or why it is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from checks.saes import FORMS, list_release, main
from utils.cli import EXIT_BROKEN_PIPE
from utils.runtime.errors import UserError


def test_a_release_lists_each_sae_with_hook_width_and_format(capsys):
    assert main(["--sae_release", "gemma-scope-9b-pt-res"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = next(line for line in lines if line.startswith("layer_20/width_16k/average_l0_408"))
    assert found.split(maxsplit=3)[1:] == ["blocks.20.hook_resid_post", "16,384", "Gemma Scope"]
    n = len(get_pretrained_saes_directory()["gemma-scope-9b-pt-res"].saes_map)
    assert len(lines) == n + 2
    assert lines[-1] == f"{n} read, 0 refused"


def test_every_loader_of_the_registry_has_its_form():
    used = {str(entry.conversion_func) for entry in get_pretrained_saes_directory().values()}
    assert used <= set(FORMS)


def test_releases_of_a_model_are_its_own(capsys):
    assert main(["--model_name", "gpt2-small"]) == 0
    releases = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    directory = get_pretrained_saes_directory()
    models = {directory[release].model for release in releases}
    assert "gpt2-small-res-jb" in releases
    assert models <= {"gpt2-small", "gpt2", "openai-community/gpt2"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sae_release", "gemma-scope-9b-pt-rse"], "gemma-scope-9b-pt-res"),
        (["--model_name", "gpt3"], "unknown model"),
        (["--model_name", "all-MiniLM-L6-v2"], "no release"),
    ],
)
def test_a_wrong_name_gets_one_line(flags, message):
    with pytest.raises(UserError, match=message) as caught:
        main(flags)
    assert "\n" not in str(caught.value)


def test_a_refused_sae_says_why_without_its_name_twice():
    for release, entry in get_pretrained_saes_directory().items():
        for sae in list_release(release, entry):
            assert bool(sae.refused) != bool(sae.hook), (release, sae)
            assert not sae.refused.startswith(sae.sae_id), (release, sae)


def test_a_reader_that_stops_reading_is_no_error():
    """As `make saes | head -1` does."""
    directory = get_pretrained_saes_directory()
    largest = max(directory, key=lambda release: len(directory[release].saes_map))
    command = [sys.executable, "-m", "checks.saes", "--sae_release", largest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() in (0, EXIT_BROKEN_PIPE)
        assert process.stderr.read() == b""

"""The Makefile: every target is listed, and every script a recipe names is there and takes the
flags it is given.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, re.MULTILINE)
VARIABLES = [
    "MODEL=llama-3.1-8b",
    "SCHEDULER=tcp://h:8786",
    "SETTING=OOD",
    "DEVICE=cpu",
    "LAYERS=16",
    "DATASETS=87_glue_cola",
    "N_JOBS=1",
    "DATA_DIR=/x",
]


def dry_run(target: str, *variables: str) -> str:
    command = ["make", "--dry-run", "--assume-old=.venv/.installed", target, *variables]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_make_alone_lists_every_target():
    listed = subprocess.run(["make"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert all(re.search(rf"^  {target} ", listed, re.MULTILINE) for target in TARGETS)
    assert max(map(len, listed.splitlines())) <= 80
    groups = [line for line in listed.splitlines()[2:] if line and not line.startswith(" ")]
    assert groups == ["Start", "Your SAE", "The paper's files", "Checks", "For developers"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_script_of_a_recipe_exists(target):
    recipe = dry_run(target)
    scripts = re.findall(r"\S+\.(?:py|sh)\b", recipe)
    scripts += [
        f"{m.replace('.', '/')}.py"
        for m in re.findall(r"-m ((?:checks|published|benchmarks)\.\w+)", recipe)
    ]
    for script in scripts:
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("variables", [[], VARIABLES], ids=["plain", "all variables"])
@pytest.mark.parametrize(
    "target",
    [
        t
        for t in TARGETS
        if t.startswith(("train-", "generate-", "fetch-", "visual")) and t != "train-all"
    ],
)
def test_recipes_pass_flags_that_their_scripts_take(target, variables):
    (line,) = [
        line
        for line in dry_run(target, *variables).splitlines()
        if line.startswith(".venv/bin/python ")
    ]
    words = shlex.split(line)[1:]
    script, flags = (
        (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    )
    module = importlib.import_module(script)
    if hasattr(module, "make_parser"):
        module.make_parser().parse_args(flags)
    if variables and "--model_name" in flags:
        assert "llama-3.1-8b" in flags


def test_folders_and_names_with_spaces_stay_one_word(tmp_path):
    """Activations on /Volumes/My Passport, and a dataset called "my data"."""
    folder = "/Volumes/My Pass'port/$HOME"
    variables = [f"DATA_DIR={folder.replace('$', '$$')}", "DATASETS='my data' b"]
    (line,) = (x for x in dry_run("visualize", *variables).splitlines() if "visualize.py" in x)
    words = shlex.split(line)
    assert words[words.index("--data_dir") + 1] == folder
    assert words[words.index("--datasets") + 1 :] == ["my data", "b"]
    demo = dry_run("demo", *variables)
    program = demo.replace("./demo.sh", "printenv DATA_DIR").removeprefix("@")
    said = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == folder


def test_stages_go_in_turn_whatever_MAKEFLAGS_says(tmp_path):
    """Each reads what the one before has made."""
    steps = "\n".join(f"{n}:\n\t@sleep 0.{9 - 4 * i}; echo {n}" for i, n in enumerate("abc"))
    start = MAKEFILE[: MAKEFILE.index("##@ Start")]
    (tmp_path / "Makefile").write_text(f"{start}\n{steps}\n")
    run = subprocess.run(
        ["make", "-j8", "a", "b", "c"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["a", "b", "c"]


@pytest.mark.parametrize("harm", ["no interpreter", "no pip"])
def test_an_environment_that_cannot_run_is_built_again(tmp_path, harm):
    """As after an upgrade of the system's Python."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    if harm == "no interpreter":
        python.symlink_to("/nowhere/python3")
    else:
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "published").mkdir()
    shutil.copy(ROOT / "published/targets.mk", tmp_path / "published")
    (tmp_path / ".venv" / ".installed").touch()
    run = subprocess.run(
        ["make", "--dry-run", "status"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "-m venv .venv" in run.stdout
    assert "-m pip install" in run.stdout


@pytest.mark.parametrize(
    ("system", "machine", "version", "fits"),
    [
        ("Darwin", "x86_64", "15.1", False),
        ("Darwin", "arm64", "13.6", False),
        ("Darwin", "arm64", "14.0", True),
        ("Linux", "x86_64", "", True),
    ],
)
def test_a_mac_without_a_build_of_torch_is_told_so_before_the_set_up(
    system, machine, version, fits
):
    (program,) = re.findall(r"-c '(import platform as p; .*)'", MAKEFILE)
    pretend = (
        f"import platform; platform.system = lambda: {system!r};"
        f" platform.machine = lambda: {machine!r}; platform.mac_ver = lambda: ({version!r},);"
    )
    run = subprocess.run(
        [sys.executable, "-c", pretend + program], capture_output=True, text=True, check=False
    )
    assert (run.returncode == 0) == fits
    assert ("torch has no build" in run.stderr) != fits


OLD_NAMES = (ROOT / "published/targets.mk").read_text()
OLD_TARGETS = [
    name
    for line in re.findall(r"^\.PHONY: (.+)$", OLD_NAMES, re.MULTILINE)
    for name in line.split()
]


@pytest.mark.parametrize("target", OLD_TARGETS)
def test_an_old_name_does_the_work_or_says_what_to_type(target):
    assert target not in TARGETS
    if re.search(
        rf"^(?:[\w -]* )?{target}(?: [\w -]+)?:\n\t\$\(call instead", OLD_NAMES, re.MULTILINE
    ):
        done = subprocess.run(["make", target], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert len(done.stdout.splitlines()) == 1
        assert done.stdout.startswith(f"{target}: ")
        assert all(name in TARGETS for name in re.findall(r"make ([a-z]+[a-z-]*)", done.stdout))
        return
    variables = ["METHOD=logreg", "LAYER=20", "DATASET=100_news_fake"]
    recipe = dry_run(target, *variables)
    scripts = re.findall(r"\.venv/bin/python (?:-m )?([\w.]+)", recipe)
    if target != "clean-cache":
        assert scripts
    for script in scripts:
        path = script.removesuffix(".py").replace(".", "/")
        assert (ROOT / f"{path}.py").is_file(), script


@pytest.mark.parametrize(
    ("target", "variable", "flag"),
    [
        ("train-baseline-method", "METHOD=logreg", "--method logreg"),
        ("train-layer", "LAYER=9", "--layers 9"),
        ("train-single-dataset", "DATASET=87_glue_cola", "--datasets 87_glue_cola"),
    ],
)
def test_an_old_name_that_needs_a_variable_passes_it_on_or_asks_for_it(target, variable, flag):
    assert flag in dry_run(target, variable)
    done = subprocess.run(["make", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout.startswith(f"say which: make {target} ")


def test_shell_scripts_pass_arguments_on_and_stop_on_errors():
    for name in ("demo_prelude.sh", "save_sae_acts_optimized.sh", ".ci/run"):
        assert "set -euo pipefail" in (ROOT / name).read_text()
    for name in ("demo.sh", "demo_lm.sh"):
        assert 'source "$(dirname "$0")/demo_prelude.sh"' in (ROOT / name).read_text()
    shown = subprocess.run(
        ["./save_sae_acts_optimized.sh", "llama-3.1-8b", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert "--max_memory" in shown.stdout

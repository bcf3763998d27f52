"""Tables of side experiments: the paper's published win rates of architectures, CoLA relabelling
and pruned latents, and our own transfer matrix.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from utils.paths import Paths
from utils.results.csv_files import read_table
from utils.runtime.errors import UserError
from utils.settings import NORMAL, SETTINGS

RELABELLED_MODEL = "gemma-2-9b"  # the experiment's only model; its table does not name it


def win_rates(paths: Paths, model_name: str) -> dict[str, pd.DataFrame]:
    """{title: sae1, sae2, win_rate}: how often probes on SAE 1 (k = 16) beat those on SAE 2, by
    setting; k = 1 last.
    """
    folder = paths.architecture_wins(model_name)
    files = {f"{s.name}, k = 16": f"sae_win_rate_16_{s.win_rates}.csv" for s in SETTINGS.values()}
    files["k = 1"] = "sae_win_rate_1.csv"
    return {
        title: _table(folder / name, ("sae1", "sae2", "win_rate"))
        for title, name in files.items()
        if (folder / name).is_file()
    }


def relabelling(paths: Paths, model_name: str) -> pd.DataFrame | None:
    """run_num (0 original labels, 1 ensemble's, 2 disagreements), run_type, test_auc; None where it
    is not there.
    """
    path = paths.relabelling()
    if model_name != RELABELLED_MODEL or not path.is_file():
        return None
    return _table(path, ("run_num", "run_type", "test_auc"))


def pruned(paths: Paths, model_name: str) -> dict[str, pd.DataFrame]:
    """{dataset: k, ood_auc_llm, val_auc_llm, ood_auc_human, val_auc_human}: probes on the latents
    judged most relevant.
    """
    files = sorted(paths.pruned_latents(model_name).glob("*/*_pruned.csv"))
    columns = ("k", "ood_auc_llm", "val_auc_llm", "ood_auc_human", "val_auc_human")
    return {file.name.removesuffix("_pruned.csv"): _table(file, columns) for file in files}


def explanations(paths: Paths, model_name: str, sae_id: str) -> dict[int, str]:
    """{latent: what it reads, in words}: of an SAE's latents that the paper published; {} where it
    did not.
    """
    table = paths.sae_probe_table(model_name, NORMAL.name)
    name = f"top_1_latent_results_{sae_id.replace('/', '_')}_with_explanations.csv"
    path = table.with_name(name)
    if not path.is_file():
        return {}
    rows = _table(path, ("best_feature", "explanation")).dropna(subset=["explanation"])
    return dict(zip(rows["best_feature"].astype(int), rows["explanation"].astype(str)))


def transfer(paths: Paths, model_name: str) -> pd.DataFrame | None:
    """trained_on, tested_on, probe, test_auc: of checks.transfer; None where it was not run."""
    path = paths.transfer_table(model_name)
    if not path.is_file():
        return None
    return _table(path, ("trained_on", "tested_on", "probe", "test_auc"))


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    table = read_table(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}; it has"
            f" {', '.join(map(str, table.columns))}"
        )
    return table

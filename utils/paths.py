"""Every folder and file name of the project, written once.

They are the paper's, so that published files mix with ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.runtime.files import ROOT
from utils.settings import NORMAL, PAPERS, SplitKind, get_setting


@dataclass(frozen=True)
class Paths:
    """The four data folders; each method names one kind of file in them.

    ``sae_dir``: where the SAEs are, in place of saes/{model} below ``data_dir``. ``split``: how the
    rows of the results were drawn.
    """

    text_dir: Path = ROOT / "raw_text_datasets"
    data_dir: Path = ROOT / "data"
    results_dir: Path = ROOT / "results"
    figures_dir: Path = ROOT / "figures"
    sae_dir: Path | None = None
    split: SplitKind = PAPERS

    # texts
    def master_table(self) -> Path:
        return self.text_dir / "probing_datasets_MASTER.csv"

    def texts(self, dataset: str) -> Path:
        return self.text_dir / "cleaned_data" / f"{dataset}.csv"

    def ood_texts(self, dataset: str) -> Path:
        return self.text_dir / "OOD data" / f"{dataset}_OOD.csv"

    # language models and SAEs
    def language_model(self, model_name: str) -> Path:
        return self.data_dir / "models" / model_name

    def saes(self, model_name: str) -> Path:
        return self.sae_dir or self.data_dir / "saes" / model_name

    # activations
    def model_activations_folder(self, model_name: str, ood: bool = False) -> Path:
        return self.data_dir / f"model_activations_{model_name}{'_OOD' if ood else ''}"

    def model_description(self, model_name: str) -> Path:
        """What a model outside the table of utils/models.py is."""
        return self.model_activations_folder(model_name) / "model.json"

    def described_models(self) -> list[str]:
        """The names of models outside the table that were read into this folder."""
        folders = (
            path.parent.name for path in self.data_dir.glob("model_activations_*/model.json")
        )
        return sorted(name.removeprefix("model_activations_") for name in folders)

    def model_activations(
        self, model_name: str, dataset: str, hook_name: str, ood: bool = False
    ) -> Path:
        folder = self.model_activations_folder(model_name, ood)
        return folder / f"{dataset}{'_OOD' if ood else ''}_{hook_name}.pt"

    def sae_activations_root(self, model_name: str) -> Path:
        return self.data_dir / f"sae_activations_{model_name}"

    def sae_activations_folder(self, model_name: str, setting: str) -> Path:
        return self.sae_activations_root(model_name) / f"{setting}_setting"

    def sae_activations(self, model_name: str, setting: str, stem: str, part: str) -> Path:
        """``stem``: names.set_stem; ``part``: X_train_sae, X_test_sae, X_rest_sae, y_train, …"""
        return self.sae_activations_folder(model_name, setting) / f"{stem}_{part}.pt"

    def published_ood_archive(
        self, model_name: str, dataset: str, ood: bool, width: str = ""
    ) -> Path:
        """A file of the published OOD archives: all rows of one dataset, its SAE told by its width.

        The archive ``…_OOD_1m.tar.gz`` has the same names inside; ``published.extract`` puts its
        files beside the other's, with ``width`` "_1m".
        """
        folder = f"sae_activations_{model_name}{'_OOD' if ood else ''}{width}"
        return self.data_dir / folder / f"{dataset}{'_OOD' if ood else ''}.pt"

    # published archives
    def archive_names(self, model_name: str) -> list[str]:
        return [
            f"model_activations_{model_name}.tar.gz",
            f"model_activations_{model_name}_OOD.tar.gz",
            f"sae_activations_{model_name}_OOD.tar.gz",
            f"sae_activations_{model_name}_OOD_1m.tar.gz",
            f"baseline_results_{model_name}.tar.gz",
        ]

    def archives(self, model_name: str) -> list[Path]:
        """Those that are there, in the data or the text folder."""
        places = (self.data_dir, self.text_dir)
        paths = [place / name for name in self.archive_names(model_name) for place in places]
        return [path for path in paths if path.is_file()]

    def extracted(self, archive: Path) -> Path:
        """Says that an archive was unpacked to its end."""
        return self.data_dir / f".extracted-{archive.name.removesuffix('.tar.gz')}.json"

    # results
    def sae_probe_table(self, model_name: str, setting: str) -> Path:
        folder = self.results_dir / f"sae_probes_{model_name}"
        return folder / f"{setting}_setting" / "all_metrics.csv"

    def probe_runs(self, model_name: str, setting: str) -> Path:
        """The original scripts' pickles of SAE probes, a file a run."""
        return self.data_dir / f"sae_probes_{model_name}" / f"{setting}_setting"

    def baseline_folder(self, model_name: str, setting: str) -> Path:
        folder = get_setting(setting).baseline_folder
        return self.results_dir / f"baseline_probes_{model_name}" / folder

    def baseline_table(self, model_name: str, setting: str, layer: int | str | None = None) -> Path:
        by_layer = get_setting(setting).all_layers
        name = f"layer{layer}_results.csv" if by_layer else "all_results.csv"
        return self.baseline_folder(model_name, setting) / name

    def text_table(self, setting: str) -> Path:
        """Of the probes on texts alone, which need no model."""
        folder = get_setting(setting).baseline_folder
        return self.results_dir / "text_probes" / folder / "all_results.csv"

    def datasets_table(self, model_name: str, selection: str = "") -> Path:
        """``selection``: the name of a choice of datasets and settings; "" for all results."""
        return self.results_dir / f"datasets_{model_name}{'_' if selection else ''}{selection}.csv"

    def latents_table(self, model_name: str) -> Path:
        """Of explain_probes.py: a row for each latent of each probe."""
        return self.results_dir / f"latents_{model_name}.parquet"

    def pruning(self, model_name: str, dataset: str) -> Path:
        return self.results_dir / f"pruning_{model_name}_{dataset}.csv"

    def transfer_table(self, model_name: str, selection: str = "") -> Path:
        """Of checks.transfer."""
        return self.results_dir / f"transfer_{model_name}{'_' if selection else ''}{selection}.csv"

    def label_audit(self, model_name: str, dataset: str) -> Path:
        return self.results_dir / f"label_audit_{model_name}_{dataset}.csv"

    def comparison_table(self, model_name: str, selection: str = "") -> Path:
        separator = "_" if selection else ""
        return self.results_dir / f"comparison_{model_name}{separator}{selection}.csv"

    def baseline_runs_folders(self, model_name: str, setting: str) -> list[Path]:
        """Where the original scripts leave a table of one row for each baseline probe."""
        row = get_setting(setting)
        folder = row.name if row is NORMAL else row.baseline_folder
        results = f"baseline_results_{model_name}"
        return [place / results / folder / "allruns" for place in (self.data_dir, self.text_dir)]

    def multi_token_folder(self, model_name: str) -> Path:
        return self.data_dir / f"consolidated_probing_{model_name}"

    def sae_checks(self, model_name: str) -> Path:
        """Shapes, measured L0 and latents that never fired, of each SAE that was used."""
        return self.results_dir / f"sae_checks_{model_name}.json"

    def multi_token_results(self, model_name: str) -> Path:
        return self.results_dir / f"multi_token_{model_name}" / "all_results.csv"

    def architecture_wins(self, model_name: str) -> Path:
        return self.results_dir / f"sae_probes_{model_name}" / "improvements"

    def relabelling(self) -> Path:
        return self.results_dir / "investigate" / "87_glue_cola_investigate_probes.csv"

    def pruned_latents(self, model_name: str) -> Path:
        return self.results_dir / f"sae_probes_{model_name}" / "OOD" / "OOD_latents"

    def saebench(self, model_name: str, sae_id: str) -> Path:
        """Where SAEBench's plots look for it: the folder says the evaluation, the name has no /."""
        name = f"{model_name}_{sae_id.replace('/', '_')}_eval_results.json"
        return self.results_dir / "saebench" / "sparse_probing_sae_probes" / name

    def calibration(self) -> tuple[Path, Path]:
        """(the table, the summary) of checks.calibrate."""
        return self.results_dir / "calibration.csv", self.results_dir / "calibration.json"

    def figures(self, model_name: str, selection: str = "") -> Path:
        return self.figures_dir / model_name / selection

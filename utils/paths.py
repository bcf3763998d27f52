"""Every folder and file name of the project, written once (the paper's names, so that published files mix with ours)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Published result folders and our setting names (readers take both spellings of OOD_setting, writers this one).
BASELINE_FOLDERS = {
    "normal": "normal_settings",
    "scarcity": "scarcity",
    "class_imbalance": "imbalance",
    "label_noise": "corrupt",
    "OOD": "ood",
}


def sae_stem(sae_id: str) -> str:
    """How an SAE's id stands in a file name.

    >>> sae_stem("layer_20/width_16k/average_l0_408")
    '20_width_16k_average_l0_408'
    >>> sae_stem("l16r_32x")
    'l16r_32x'
    """
    return sae_id.removeprefix("layer_").replace("/", "_")


@dataclass(frozen=True)
class Paths:
    """The four data folders; each method names one kind of file in them."""

    text_dir: Path = ROOT / "raw_text_datasets"
    data_dir: Path = ROOT / "data"
    results_dir: Path = ROOT / "results"
    figures_dir: Path = ROOT / "figures"

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
        return self.data_dir / "saes" / model_name

    # activations
    def model_activations_folder(self, model_name: str, ood: bool = False) -> Path:
        return self.data_dir / f"model_activations_{model_name}{'_OOD' if ood else ''}"

    def model_description(self, model_name: str) -> Path:
        """What a model outside the table of utils/models.py is."""
        return self.model_activations_folder(model_name) / "model.json"

    def model_activations(self, model_name: str, dataset: str, hook_name: str, ood: bool = False) -> Path:
        folder = self.model_activations_folder(model_name, ood)
        return folder / f"{dataset}{'_OOD' if ood else ''}_{hook_name}.pt"

    def sae_activations_root(self, model_name: str) -> Path:
        return self.data_dir / f"sae_activations_{model_name}"

    def sae_activations_folder(self, model_name: str, setting: str) -> Path:
        return self.sae_activations_root(model_name) / f"{setting}_setting"

    def sae_activations(self, model_name: str, setting: str, dataset: str, sae_id: str, part: str, suffix: str = "") -> Path:
        """``part`` is X_train_sae, X_test_sae, X_rest_sae, y_train or y_test; ``suffix`` tells the original scripts' files of
        one condition apart ("_20" for 20 training rows, "_frac0.05" for that share of positives)."""
        folder = self.sae_activations_folder(model_name, setting)
        return folder / f"{dataset}_{sae_stem(sae_id)}{suffix}_{part}.pt"

    def published_ood_archive(self, model_name: str, dataset: str, ood: bool, width: str = "") -> Path:
        """A file of the published OOD archives: all rows of one dataset, for an SAE that its width tells.

        The archive ``…_OOD_1m.tar.gz`` has the same names inside; ``extract_data.py`` puts its files beside the other's, with
        ``width`` "_1m".
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
        places = [folder / name for name in self.archive_names(model_name) for folder in (self.data_dir, self.text_dir)]
        return [path for path in places if path.is_file()]

    def extracted(self, archive: Path) -> Path:
        """Says that an archive was unpacked to its end."""
        return self.data_dir / f".extracted-{archive.name.removesuffix('.tar.gz')}.json"

    # results
    def sae_probe_table(self, model_name: str, setting: str) -> Path:
        return self.results_dir / f"sae_probes_{model_name}" / f"{setting}_setting" / "all_metrics.csv"

    def baseline_table(self, model_name: str, setting: str, layer: int | str | None = None) -> Path:
        folder = self.results_dir / f"baseline_probes_{model_name}" / BASELINE_FOLDERS[setting]
        return folder / (f"layer{layer}_results.csv" if setting == "normal" else "all_results.csv")

    def comparison_table(self, model_name: str) -> Path:
        return self.results_dir / f"comparison_{model_name}.csv"

    def baseline_runs_folders(self, model_name: str, setting: str) -> list[Path]:
        """Where the original scripts leave a table of one row for each baseline probe."""
        places = (self.data_dir, self.text_dir)
        folder = {**BASELINE_FOLDERS, "normal": "normal"}[setting]
        return [place / f"baseline_results_{model_name}" / folder / "allruns" for place in places]

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
        return self.results_dir / "saebench" / f"{model_name}_{sae_id.replace('/', '--')}_eval_results.json"

    def positive_control(self) -> Path:
        return self.results_dir / "positive_control.csv"

    def figures(self, model_name: str) -> Path:
        return self.figures_dir / model_name

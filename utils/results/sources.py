"""What the rows of result tables are made from, by one rule for those who write and who read."""

from __future__ import annotations

from utils.activations import rows_fingerprint
from utils.datasets import dataset_facts
from utils.names import OF_LATENTS, hook_name, split_twin, trained_id
from utils.paths import Paths
from utils.probes.controls import OF_LAYER
from utils.probes.words import WORD_RULES
from utils.readers.fingerprints import digest
from utils.runtime.errors import UserError
from utils.saes.store import Look, SaeFiles, latents_fingerprint
from utils.settings import NORMAL, PAPERS, SHIFTED, SPLIT_RULES, Setting


class Sources:
    """What a model's results would be made from now; each file is looked at once."""

    def __init__(self, paths: Paths, model_name: str) -> None:
        self.paths, self.model_name = paths, model_name
        self.look = Look(paths, model_name)
        self._seen: dict[tuple, str | None] = {}

    def of(self, row: dict, setting: Setting) -> str | None:
        """The fingerprint that a row of a result table would carry if it were made now.

        ``row``: its dataset, layer and method, and its sae_id where it is of an SAE. None where the
        inputs are not there or cannot be read: then nothing can be compared.
        """
        sae_id = row.get("sae_id")
        if not isinstance(sae_id, str) or row["method"] in OF_LAYER:
            sae_id = ""
        elif split_twin(sae_id)[1] in OF_LATENTS:
            sae_id = trained_id(sae_id)
        about = (row["dataset"], hook_name(row["layer"]), sae_id, setting.shifted)
        if about not in self._seen:
            try:
                self._seen[about] = self._find(*about)
            except UserError:  # the task that makes the row will say what is wrong
                self._seen[about] = None
        return self._seen[about]

    def of_texts(self, dataset: str, n_rows: int, setting: Setting) -> str | None:
        """As ``of``, of a probe on a dataset's first ``n_rows`` texts alone."""
        about = (dataset, n_rows, setting.shifted)
        if about not in self._seen:
            try:
                self._seen[about] = self._find_texts(*about)
            except UserError:
                self._seen[about] = None
        return self._seen[about]

    def _find_texts(self, dataset: str, n_rows: int, shifted: bool) -> str:
        sources: list[str | int] = [SPLIT_RULES, WORD_RULES]
        if self.paths.split != PAPERS:
            sources.append(self.paths.split.folder)
        sources.append(dataset_facts(self.paths, dataset, n_rows=n_rows).texts_and_labels)
        if shifted:
            sources.append(dataset_facts(self.paths, dataset, ood=True).texts_and_labels)
        return digest(sources)

    def _find(self, dataset: str, hook: str, sae_id: str, shifted: bool) -> str | None:
        found = self._rows_read(dataset, hook, sae_id, shifted)
        if found is None or self.paths.split == PAPERS:
            return found
        return digest([found, self.paths.split.folder])

    def _rows_read(self, dataset: str, hook: str, sae_id: str, shifted: bool) -> str | None:
        if not sae_id:
            return rows_fingerprint(self.paths, self.model_name, dataset, hook, shifted)
        name = SHIFTED.name if shifted else NORMAL.name
        files = SaeFiles(self.paths, self.model_name, name, dataset, sae_id)
        return latents_fingerprint(files, hook, self.look)

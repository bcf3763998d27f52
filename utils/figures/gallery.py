"""Every figure: its name, its caption, and what draws it. A new figure is one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from utils.figures import side_experiments as paper_figures
from utils.figures import study
from utils.figures.style import RC, NoData, plotted
from utils.paths import Paths
from utils.results import side_experiments
from utils.results.calibration import read_calibration
from utils.results.comparison import Picks, compare, on_score
from utils.runtime.errors import Failures, UserError, first_line, is_out_of_memory
from utils.runtime.files import atomic_path
from utils.runtime.progress import progress
from utils.settings import NORMAL, SETTINGS, SHIFTED

FORMATS = ("png", "pdf", "svg")
DOTS = "verdict"  # the figure on the report's first screen
# What differs in the texts of each out-of-distribution file, as read in the files
OOD_SHIFTS = {
    "5_hist_fig_ismale": "cartoon characters",
    "6_hist_fig_isamerican": "stray letters in names",
    "7_hist_fig_ispolitician": "surname first",
    "66_living-room": "in French",
    "67_social-security": "in Spanish",
    "73_control-group": "in German",
    "87_glue_cola": "sentences from elsewhere",
    "90_glue_qnli": "texts from elsewhere",
}


IMBALANCED = "class_imbalance"


class Material:
    """The tables that figures are drawn from: one protocol's probes of a model.

    ``picks``: {setting: {contender: its picks}}; ``stated``: the comparison over all conditions, on
    fresh rows where they are known; ``multi_token``: of multi_token.load_multi_token.
    """

    def __init__(
        self,
        tidy: pd.DataFrame,
        picks: Mapping[str, dict[str, pd.DataFrame]],
        comparison: pd.DataFrame,
        stated: pd.DataFrame,
        gap: pd.DataFrame,
        multi_token: pd.DataFrame,
    ) -> None:
        self.tidy, self.comparison, self.gap, self.multi_token = tidy, comparison, gap, multi_token
        self.picks, self.stated = picks, stated

    def compared_by(self, setting: str, score: str) -> pd.DataFrame:
        """The comparison of a setting by another score than test AUC."""
        of_setting = self.tidy[self.tidy["setting"] == setting]
        return compare(Picks(on_score(of_setting, score)))

    def picks_of(self, setting: str) -> dict[str, pd.DataFrame]:
        return self.picks.get(setting, {})


@dataclass(frozen=True)
class Picture:
    """``draw(material)`` makes the figure, or raises NoData where its table is missing."""

    name: str
    caption: str
    draw: Callable[[Material], Figure]


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn, and the file that shows it."""

    name: str
    caption: str
    png: Path


def gallery(paths: Paths, model_name: str) -> list[Picture]:
    """All figures of a model, in the order of the report."""
    varied = [setting for setting in SETTINGS.values() if setting.values]
    labels = {setting.name: setting.axis_label for setting in varied}
    pictures = [
        Picture(
            DOTS,
            "Mean difference in test AUC from the best baseline, with 95 % intervals over datasets:"
            " SAE probes and every control, setting by setting, on fresh test rows where they are"
            " known",
            lambda m: study.verdict_dots(m.stated),
        ),
        Picture(
            "settings",
            "Mean test AUC of each contender, setting by setting",
            lambda m: study.setting_bars(m.comparison),
        ),
        Picture(
            "normal_auc_by_k",
            "Test AUC against k, the number of latents a probe may use: the mean, then at most"
            " twelve datasets, from the one where SAE probes are furthest ahead of logistic"
            " regression to the one where they are furthest behind (others: visualize.py"
            " --datasets)",
            lambda m: study.auc_by_k(m.tidy),
        ),
        Picture(
            "normal_quiver",
            "SAE probe against best baseline, a point a dataset; both picked by validation AUC",
            lambda m: study.quiver_scatter(m.picks_of(NORMAL.name)),
        ),
        Picture(
            "auc_by_width",
            "Mean test AUC against the width of the SAE (whose L0 may differ too)",
            lambda m: study.auc_by_size(m.tidy, "width"),
        ),
        Picture(
            "auc_by_l0",
            "Mean test AUC against the L0 of the SAE",
            lambda m: study.auc_by_size(m.tidy, "L0"),
        ),
        Picture(
            "normal_layers",
            "Mean test AUC of each baseline by layer",
            lambda m: study.method_by_layer(m.tidy),
        ),
        Picture(
            "normal_best_method",
            "How often each baseline is the best by validation AUC, layer by layer",
            lambda m: study.best_method_by_layer(m.tidy),
        ),
    ]
    for setting in varied:
        pictures += _of_setting(setting.name, setting.axis_label)
        if setting.name == IMBALANCED:
            pictures += _of_imbalance(setting.name, setting.axis_label)
    return [
        *pictures,
        Picture(
            "OOD",
            "Test AUC out of distribution, dataset by dataset, with what was shifted",
            lambda m: study.ood_bars(m.picks_of(SHIFTED.name), OOD_SHIFTS),
        ),
        Picture(
            "validation_gaps",
            "How much more validation promises than test rows keep",
            lambda m: study.validation_gaps(m.gap, labels),
        ),
        Picture(
            "transfer",
            "Each dataset's probe on every dataset's test rows: AUC below 0.5 is the other way"
            " round (`make transfer`)",
            lambda m: study.transfer(side_experiments.transfer(paths, model_name)),
        ),
        Picture(
            "calibration",
            "SAEs of known quality on synthetic activations (`make calibrate`): what their probes"
            " score against how well their directions stand for the true features",
            lambda m: study.calibration(read_calibration(paths)),
        ),
        Picture(
            "multi_token",
            "Probes on all tokens of a text",
            lambda m: paper_figures.multi_token(
                m.multi_token, m.picks_of(NORMAL.name).get("quiver_baselines")
            ),
        ),
        Picture(
            "architectures",
            "How often probes on one SAE architecture beat those on another (published win rates)",
            lambda m: paper_figures.architecture_wins(
                side_experiments.win_rates(paths, model_name)
            ),
        ),
        Picture(
            "cola_relabelling",
            "CoLA with its own labels and with cleaner ones (published results)",
            lambda m: paper_figures.relabelling(side_experiments.relabelling(paths, model_name)),
        ),
        Picture(
            "pruned_latents",
            "Probes on the latents judged most relevant, in and out of distribution (published"
            " results)",
            lambda m: paper_figures.pruned_latents(side_experiments.pruned(paths, model_name)),
        ),
    ]


SCORES = {"test_ap": "average precision", "test_recall_1fpr": "recall at 1 % false positives"}


def _of_imbalance(setting: str, axis_label: str) -> list[Picture]:
    """What AUC hides where classes are of unlike size."""
    return [
        Picture(
            f"{setting}_{score.removeprefix('test_')}",
            f"Mean {name} over the conditions of {setting}, and the difference from the best"
            " baseline",
            lambda m, score=score, name=name: study.condition_curves(  # type: ignore[misc]
                m.compared_by(setting, score), setting, axis_label, name
            ),
        )
        for score, name in SCORES.items()
    ]


def _of_setting(setting: str, axis_label: str) -> list[Picture]:
    """The figures of a setting whose conditions vary."""
    return [
        Picture(
            setting,
            f"Mean test AUC over the conditions of {setting}, and the difference from the best"
            " baseline",
            lambda m: study.condition_curves(m.comparison, setting, axis_label),
        ),
        Picture(
            f"{setting}_datasets",
            f"{setting} on eight datasets, from the one where SAE probes gain most to the one where"
            " they lose most",
            lambda m: study.selected_datasets(m.picks_of(setting), setting, axis_label),
        ),
    ]


def draw_all(
    pictures: list[Picture], material: Material, folder: Path, failures: Failures
) -> tuple[list[Drawing], list[str]]:
    """(the figures drawn, a line for each left out); a table that cannot be used is a failure."""
    drawings: list[Drawing] = []
    left_out: list[str] = []
    for picture in progress(pictures, desc="figures", unit="figure"):
        files = {suffix: folder / f"{picture.name}.{suffix}" for suffix in (*FORMATS, "csv")}
        try:
            with matplotlib.rc_context():
                matplotlib.rcdefaults()  # whatever a matplotlibrc says
                matplotlib.rcParams.update(RC)
                figure = picture.draw(material)
                numbers = plotted(figure)  # before it is saved, which may add marks
                around = tight_box(figure)  # once: each format would find it by drawing all
                for suffix in FORMATS:
                    _save(figure, files[suffix], suffix, around)
                with atomic_path(files["csv"]) as temporary:
                    numbers.to_csv(temporary, index=False, lineterminator="\n")
        except NoData as reason:
            why = str(reason)
        except UserError as error:  # a file is there and cannot be used
            why = str(error)
            failures.add(error)
        except Exception as error:  # one figure that fails is one figure left out
            if is_out_of_memory(error) or isinstance(error, OSError):
                raise
            why = f"it cannot be drawn ({type(error).__name__}: {first_line(error)})"
            failures.add(f"figure {picture.name}: {why}")
        else:
            drawings.append(Drawing(picture.name, picture.caption, files["png"]))
            continue
        left_out.append(f"figure {picture.name}: {why}")
        for path in files.values():  # an older one would show what is no longer there
            path.unlink(missing_ok=True)
    return drawings, left_out


def tight_box(figure: Figure) -> Bbox:
    """What a figure covers, in inches, with a margin."""
    return figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer()).padded(0.1)


def _save(figure: Figure, path: Path, suffix: str, around: Bbox) -> None:
    content = BytesIO()  # on a full disk matplotlib's own writing ends in a traceback
    # the same bytes on every run
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
    figure.savefig(content, format=suffix, dpi=160, metadata=metadata, bbox_inches=around)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())

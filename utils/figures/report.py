"""The report: one HTML file with everything in it, readable on a phone and on a laptop, without
network.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import pandas as pd

from utils.results.audit import Finding
from utils.results.comparison import ALL, TITLES, headline
from utils.runtime.files import atomic_path

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5b5b5b; --line: #d9d9d9; --paper: #ffffff; --shade: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #a8a8a8; --line: #444; --paper: #181818; --shade: #242424; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.4rem 0 0.6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.5rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
p, li { max-width: 44rem; } .soft, figcaption { color: var(--soft); font-size: 0.92rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: 0.6rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 0.35rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th { font-weight: 600; cursor: pointer; background: var(--shade); } th:first-child { background: var(--shade); }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
figure { margin: 1.4rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figure.multiples { overflow-x: auto; } figure.multiples img { max-width: none; width: max(100%, 44rem); }
pre { background: var(--shade); padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; border-radius: 4px; }
"""
SORT = """
document.querySelectorAll("table").forEach(table => table.querySelectorAll("th").forEach((th, column) => {
  th.tabIndex = 0;
  const sort = () => {
    const up = th.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    const value = row => { const t = row.cells[column].textContent.trim(), n = parseFloat(t); return isNaN(n) ? t : n; };
    [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
      return (typeof x === typeof y ? (x > y ? 1 : x < y ? -1 : 0) : typeof x === "number" ? -1 : 1) * (up ? 1 : -1);
    }).forEach(row => body.append(row));
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  th.onclick = sort; th.onkeydown = e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } };
}));
"""
COLUMNS = {
    "setting": "setting", "protocol": "protocol", "condition": "condition", "contender": "contender",
    "mean_test_auc": "mean test AUC", "mean_difference": "difference", "ci_low": "95 % from", "ci_high": "to",
    "wins": "wins", "ties": "ties", "losses": "losses", "p_wilcoxon": "Wilcoxon p", "p_holm": "Holm p",
    "tie_share": "tied picks", "lowest": "ties: lowest", "highest": "highest",
    "n_datasets": "datasets", "n_pairs": "pairs", "n_unmatched": "unmatched",
}  # fmt: skip
WHOLE = {"wins", "ties", "losses", "n_datasets", "n_pairs", "n_unmatched", "k", "ahead on", "of"}
WHOLE |= {"datasets", "pairs", "unmatched", "above_logreg", "n_labels", "n_train"}


def write_report(
    path: Path,
    model_name: str,
    tables: dict[str, pd.DataFrame],
    figures: dict[str, tuple[str, Path]],
    findings: list[Finding],
    left_out: list[str],
    settings: dict[str, dict],
) -> None:
    """Write the report of one model.

    ``tables``: comparison, against_control, positive_control, gap, each_sae, each possibly empty.
    ``figures``: {name: (caption, PNG file)}. ``settings``: what made the tables.
    """
    comparison, against_control, each_sae = (
        tables[name] for name in ("comparison", "against_control", "each_sae")
    )
    body = [f"<h1>Are SAE probes useful on {html.escape(model_name)}?</h1>", _answer(comparison)]
    if len(comparison):
        body += [
            "<h2>By setting</h2>",
            _table(headline(comparison).reset_index().rename(columns=COLUMNS)),
        ]
        body.append(
            "<p class='soft'>Mean test AUC over matched decisions: the same dataset, condition and"
            " layer for every contender. Each contender's probe is picked by validation AUC, ties"
            " in expectation over a random choice; nothing is picked on test rows.</p>"
        )
    if len(against_control):
        body += [
            "<h2>Trained SAEs against controls</h2>",
            (
                "<p>Normal setting, k latents against k columns of something else, chosen by the"
                " same rule: an SAE of the same shape whose weights were never trained; the model's"
                " raw dimensions; its principal components. Where a control does as well, the probe"
                " owes nothing to what the SAE learned.</p>"
            ),
            _table(against_control),
        ]
    if len(tables["positive_control"]):
        body += ["<h2>Where the answer is known</h2>", _known_answer(tables["positive_control"])]
        body.append(_table(tables["positive_control"]))
    if figures:
        body.append("<h2>Figures</h2>")
    for name, (caption, png) in figures.items():
        data = base64.b64encode(png.read_bytes()).decode("ascii")
        # small multiples would be unreadable on a phone: they keep their width and scroll
        kind = "multiples" if name.endswith("_by_k") else "plain"
        image = f"<img alt='{html.escape(caption, quote=True)}' src='data:image/png;base64,{data}'>"
        caption = f"<figcaption>{html.escape(caption)} ({html.escape(name)})</figcaption>"
        body.append(f"<figure class='{kind}'>{image}{caption}</figure>")
    if len(tables["gap"]):
        body += [
            "<h2>What validation promises</h2>",
            (
                "<p>Validation AUC less test AUC, averaged over all probes of a condition. The"
                " paper's protocol ranks latents on all training rows before it sets some aside for"
                " validation, so its SAE probes promise too much, most on few rows; the nested"
                " protocol ranks inside each fold.</p>"
            ),
            _table(tables["gap"]),
        ]
    if len(each_sae):
        body += [
            "<h2>Each SAE</h2>",
            (
                "<p>Each SAE alone, its number of latents picked by validation AUC, against the"
                " best baseline on the same datasets and conditions.</p>"
            ),
            _table(each_sae),
        ]
    if len(comparison):
        table = comparison.rename(columns=COLUMNS)[
            [c for c in COLUMNS.values() if c in comparison.rename(columns=COLUMNS)]
        ]
        table["contender"] = table["contender"].map(TITLES)
        body += [
            "<h2>All comparisons</h2>",
            (
                "<p class='soft'>Differences are from the best baseline; intervals resample"
                " datasets; the p-values are Wilcoxon's signed-rank test over datasets, corrected"
                " by Holm over a setting's conditions. Click a heading to sort.</p>"
            ),
            _table(table),
        ]
    body += ["<h2>Audit</h2>", _audit(findings)]
    if left_out:
        body += [
            "<h2>Figures left out</h2>",
            "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in left_out) + "</ul>",
        ]
    if settings:
        body.append("<h2>Settings and versions</h2>")
        body.append(f"<pre>{html.escape(json.dumps(settings, indent=1, sort_keys=True))}</pre>")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport'"
        " content='width=device-width, initial-scale=1'><title>SAE probes:"
        f" {html.escape(model_name)}</title><style>{CSS}</style></head><body>"
        + "\n".join(body)
        + f"<script>{SORT}</script></body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _audit(findings: list[Finding]) -> str:
    """What was looked for in the tables, the worst first."""
    if not findings:
        return "<p>Nothing was found.</p>"
    titles = {
        "wrong": "Must not be used as what it is called",
        "doubt": "To be known",
        "fine": "Looked for and not found",
    }
    parts = []
    for weight, title in titles.items():
        lines = [
            f"<li><b>{html.escape(f.about)}</b>: {html.escape(f.what)}</li>"
            for f in findings
            if f.weight == weight
        ]
        if lines:
            parts.append(f"<h3>{title}</h3><ul>{''.join(lines)}</ul>")
    return "".join(parts)


def _answer(comparison: pd.DataFrame) -> str:
    """One sentence a setting: who is ahead and how sure that is."""
    if not len(comparison):
        return (
            "<p>No setting has both baselines and SAE probes yet, so there is nothing to"
            " compare.</p>"
        )
    lines = []
    overall = comparison[(comparison["condition"] == ALL) & (comparison["contender"] == "sae_only")]
    several = overall["protocol"].nunique() > 1
    for row in overall.to_dict("records"):
        sure = row["ci_low"] > 0 or row["ci_high"] < 0
        side = "above" if row["mean_difference"] > 0 else "below"
        interval = (
            f" (95 % interval {row['ci_low']:+.3f} to {row['ci_high']:+.3f})"
            if pd.notna(row["ci_low"])
            else ""
        )
        hedge = "" if sure else ", a difference this data cannot tell from none"
        where = html.escape(row["setting"]) + (f", {row['protocol']} protocol" if several else "")
        lines.append(
            f"<li><b>{where}</b>: SAE probes are {abs(row['mean_difference']):.3f} AUC {side} the"
            f" best baseline{interval}{hedge}; ahead in {row['wins']:.0f} of {row['n_pairs']}"
            " decisions.</li>"
        )
    return "<ul>" + "".join(lines) + "</ul>"


def _known_answer(table: pd.DataFrame) -> str:
    """What the positive control shows, in words taken from its own numbers."""
    fewest = table[table["n_train"] == table["n_train"].min()]
    found = "; ".join(
        f"{html.escape(row['probe'])}: {row['mean_test_auc']:.3f}"
        + (
            f", above logreg on {row['above_logreg']} of {row['n_labels']}"
            if row["above_logreg"] or "SAE" in row["probe"]
            else ""
        )
        for row in fewest.to_dict("records")
    )
    return (
        "<p>Synthetic activations, the label being whether one of their features fires. An SAE"
        " whose encoder is the true dictionary must win where training rows are few, and one with"
        " random directions must not: if it were otherwise, the probes would be at fault. With"
        f" {int(fewest['n_train'].iloc[0])} training rows: {found}.</p>"
    )


def _table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{_cell(column, value)}</td>" for column, value in zip(table.columns, row))
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return (
        "<div"
        f" class='wide'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(column: str, value: object) -> str:
    if value is None or value != value:
        return "–"
    if not isinstance(value, float):
        return html.escape(str(value))
    if column in WHOLE or column.startswith("ahead"):
        return f"{value:.0f}"
    if column.endswith(" p") and value < 0.0005:
        return "&lt;0.001"
    return f"{value:.3g}" if column == "condition" else f"{value:.3f}"

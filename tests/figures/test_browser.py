"""The report in a real browser: filters, search, cards, copies, widths, hostile texts.

Needs Playwright's Python package and Chromium from the distribution; skipped without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from utils.figures.report import Report, write_report
from utils.results.cards import Card, Example, ProbeCards
from utils.results.comparison import Picked, compare_all
from utils.results.tidy import BASELINE, SAE, TEXT

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                 if (path := shutil.which(name))), None)  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

HOSTILE = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><h1>out</h1>",
    "\u202eright to left\u202c שלום \U0001f600 \" ' & \u2028",
]
NAMES = [f"{i}_texts" for i in range(8)] + ["<b>bold</b>"]


def made_tidy() -> pd.DataFrame:
    rows = []
    for i, name in enumerate(NAMES):
        common = {"setting": "normal", "condition": "all", "dataset": name, "layer": 2,
                  "protocol": "paper", "seed": 42, "n_test": 300, "test_auc_fresh": float("nan"),
                  "n_fresh": 0}  # fmt: skip
        for kind, method, auc in (
            (BASELINE, "logreg", 0.9),
            (BASELINE, "knn", 0.8),
            (TEXT, "text_only", 0.7 + 0.03 * i),
        ):
            scores = {"val_auc": auc, "test_auc": auc + 0.001 * i}
            rows.append({**common, "kind": kind, "method": method, **scores})
        for k in (1, 16):
            auc = 0.75 + 0.005 * k + 0.001 * i
            of_sae = {"kind": SAE, "method": "sae_probe", "sae_id": "layer_2/width_1k/topk_32"}
            scores = {"k": float(k), "val_auc": auc, "test_auc": auc, "n_nonzero": float(k)}
            rows.append({**common, **of_sae, **scores})
    return pd.DataFrame(rows)


def made_cards() -> list[ProbeCards]:
    examples = [
        Example("top", i, 1, 5.0 - i, 1.0, text, [text[:5], text[5:]], [1.0, -0.5])
        for i, text in enumerate(HOSTILE)
    ] + [Example("miss", 9, 1, 0.0, -1.0, HOSTILE[0])]
    card = Card(1, 7, 0.5, 0.9, 1, 0.9, 0.85, 0.84, [0.1, 0.6], [0, 1, 2], [[1, 2], [3, 4]], 1.0,
                examples)  # fmt: skip
    probe = ProbeCards(
        "", "layer_2/width_1k/topk_32", 16, "paper", 42, "blocks.2.hook_resid_post",
        ["<i>ham</i>", "spam"], 0.85, 0.9, 300, "", "https://www.neuronpedia.org/m/1", "abc",
        [], [card],
    )  # fmt: skip
    return [replace(probe, dataset=name) for name in NAMES]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    tidy = made_tidy()
    path = tmp_path_factory.mktemp("report") / "report.html"
    empty = pd.DataFrame()
    tables = compare_all(Picked(tidy), "paper")
    of_page = ("model", "1 SAE", tidy, tables, made_cards(), False, "")
    about = Report(*of_page, empty, "", empty, empty, [], [], [], {})
    write_report(path, about)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=[390, 768, 1280, 1920])
def page(request, report, browser) -> Iterator[Any]:
    """The page at a width; every error that its console shows is one of the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(report.as_uri())
    yield opened
    assert not errors
    width = opened.evaluate("document.documentElement.scrollWidth")
    assert width == request.param, "the page pans sideways"
    context.close()


def shown(page: Any) -> int:
    return page.locator("tr.opens:not([hidden])").count()


def test_filters_and_search_narrow_the_table(page):
    assert shown(page) == len(NAMES)
    page.fill("#search", "3_TEX")
    assert shown(page) == 1
    page.fill("#search", "")
    page.select_option("#filter-words", "words suffice")
    assert 0 < shown(page) < len(NAMES)
    page.select_option("#filter-words", "")
    page.select_option("#filter-k", "16")
    assert shown(page) == len(NAMES)
    assert page.locator("#shown").inner_text() == f"{len(NAMES)} of {len(NAMES)} rows"


def test_a_click_opens_cards_and_texts_are_texts(page):
    row = page.locator("tr.opens", has_text="3_texts")
    row.click()
    detail = page.locator("tr.detail")
    assert detail.count() == 1
    assert detail.locator("svg polyline").count() >= 1
    said = detail.locator(".card").inner_text()
    for text in HOSTILE[:3]:
        assert text in said
    assert "Evidence for class spam" in said
    assert "<i>ham</i>" in said
    assert page.title() == "SAE probes: model"
    assert page.locator("main h1").count() == 1
    assert detail.locator("script, img").count() == 0
    link = detail.locator(".card a")
    assert link.get_attribute("href") == "https://www.neuronpedia.org/m/1/7"
    row.click()
    assert page.locator("tr.detail").count() == 0


def test_a_table_is_copied_as_it_is_shown(page):
    page.evaluate("navigator.clipboard.writeText = text => { window.copied = text; }")
    page.fill("#search", "bold")
    bar = page.locator("#explorer").locator("xpath=../following-sibling::div[1]")
    for name, expected in (
        ("Markdown", "| <b>bold</b> | normal |"),
        ("LaTeX", "<b>bold</b> & normal & -0.0"),
        ("CSV", "<b>bold</b>,normal,-0.0"),
    ):
        bar.get_by_text(name, exact=True).click()
        copied = page.evaluate("window.copied")
        assert expected in copied
        assert copied.count("normal") == 1


def test_a_heading_sorts(page):
    heading = page.locator("#explorer th", has_text="dataset")
    for first in ("0_texts", "<b>bold</b>"):
        heading.click()
        assert page.locator("tr.opens").first.locator("td").first.inner_text() == first


def test_raw_data_is_behind_a_fold(page):
    page.locator("#raw summary").click()
    page.wait_for_function("document.querySelector('#raw pre').textContent.length > 100")
    assert '"dataset": "<b>bold</b>"' in page.locator("#raw pre").inner_text()

"""README.md and docs/ lead to files that exist, and name commands whose output can be read."""

import re

import pytest

from pipeline.audit.samples import SAMPLE
from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
WIDE = r"dvc (dag|metrics (show|diff))(?! --)"  # hundreds of columns


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_lead_to_headings(page):
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        target = page.parent / link if link else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, (link, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_whose_output_is_too_wide_are_not_recommended(page):
    assert not re.findall(rf"`{WIDE}", page.read_text(encoding="utf-8"))


def test_the_sample_of_an_audit_is_as_large_as_its_page_says():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    assert text.count(f"a sample of whole batches, {SAMPLE} images or more") == 2
    assert "audit.sample" not in text, "no such parameter"

"""The page as text: what it says, and that what comes from data stays text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.report import page
from tests import tiny_project
from tests.report.conftest import HOSTILE, MODELS, render

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning"
)
GOLDEN = Path(__file__).with_name("page.txt")


class Text(HTMLParser):
    """The text of a page, a line per element that has some, and its tags with attributes."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.lines, self.tags = [], []
        self._inside = []
        self.feed(content.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        self._inside.pop()

    def handle_data(self, data):
        if "style" not in self._inside[-1:] and data.strip():
            self.lines.append(" ".join(data.split()))


def masked(line: str) -> str:
    """A line without what other processors and versions change."""
    line = re.sub(r"\b[0-9a-f]{64}\b", "<SHA-256>", line)
    line = re.sub(r"(processor|precision|device) [^;]*", r"\1 …", line)
    return re.sub(r"(torch|torchvision|torchattacks|h5py|numpy) [\d.+a-z]+", r"\1 …", line)


def test_the_page_says_what_it_said(rendered, request):
    """After a wanted change: delete page.txt, run this twice, and read the difference."""
    lines = Text(rendered).lines
    start, end = lines.index("2. Gallery"), lines.index("3. Curves")
    costs, after = lines.index("7. Costs"), lines.index("8. Provenance")
    kept = [*lines[:start], *lines[end:costs], *lines[after:]]
    text = "".join(f"{masked(line)}\n" for line in kept)
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
        pytest.fail(f"{GOLDEN}: written anew, read it")
    assert text == GOLDEN.read_text()


def test_the_same_files_give_the_same_page(project, rendered):
    assert render(project) == rendered
    assert len(rendered) < page.MOST_BYTES


def test_a_page_that_grows_too_large_is_one_line(project, rendered, tmp_path, capsys):
    command = f"python -m pipeline.report --project . --out {tmp_path}/index.html"
    with tiny_project.here(project) as patch:
        patch.setattr(page, "render", lambda _: rendered)
        patch.setattr(page, "MOST_BYTES", len(rendered))
        tiny_project.run_here(command)
        assert "warning" not in capsys.readouterr().out
        patch.setattr(page, "MOST_BYTES", 2**17)
        tiny_project.run_here(command)
    line = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(
        r"warning: \S+/index.html: too large to send around \(expected at most 0 MiB, found "
        r"\d\.\d MiB\); name fewer models in evaluate.models, since each brings its own pictures",
        line,
    )


def test_names_from_data_stay_text(rendered):
    found = Text(rendered)
    assert {tag for tag, _ in found.tags} & {"script", "iframe", "object", "link", "form"} == set()
    assert all(attributes["src"].startswith("data:image/") for _, attributes in images(found))
    assert all(attributes["alt"] for _, attributes in images(found))
    assert not [
        name for _, attributes in found.tags for name in attributes if name.startswith("on")
    ]
    assert not [attributes for _, attributes in found.tags if "style" in attributes]
    text = "\n".join(found.lines)
    for name in HOSTILE:
        assert name in text


def images(found):
    return [entry for entry in found.tags if entry[0] == "img"]


def test_links_lead_to_sections_of_the_page(rendered):
    tags = Text(rendered).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"] for tag, attributes in tags if tag == "a"} <= {f"#{i}" for i in ids}


def test_costs_are_those_that_the_stages_recorded(rendered):
    lines = Text(rendered).lines
    start = lines.index("7. Costs")
    place = lines.index("prepare", start)
    assert lines[place + 1 : place + 5] == ["12.5", "20.0", "1,024", "2.00"]
    train = lines.index("train_clean", start)
    assert lines[train + 1 : train + 5] == ["–"] * 4


def test_gallery_cards_show_what_their_rule_says(rendered):
    text = rendered.decode()
    start, end = text.index('id="gallery"'), text.index('id="curves"')
    cards = text[start:end].split("<article")[1:]
    falls = [card for card in cards if "falls to" in card.split("</h3>")[0]]
    stands = [card for card in cards if "withstands every" in card.split("</h3>")[0]]
    assert len(cards) > len(falls) + len(stands) > 0  # the rest are refreshed training images
    for card in falls + stands:
        (row,) = re.findall(r'<th scope="row">refreshed</th>(.*?)</tr>', card)
        marks = re.findall("[✓✗]", row)
        assert marks[0] == "✓"
        assert ("✗" in marks) == (card in falls)


def test_a_result_that_is_missing_is_one_line(project, tmp_path):
    folder = tiny_project.copy(project, tmp_path / "copy")
    (folder / "plots/robust/curves.csv").unlink()
    with pytest.raises(InputError, match=r"curves.csv: cannot be read; `dvc repro` makes it$"):
        render(folder)


def test_without_a_grid_the_page_says_so(project, tmp_path):
    folder = tiny_project.copy(project, tmp_path / "copy")
    for model in MODELS:
        path = folder / f"metrics/{model}.json"
        text = re.sub(r'"grid": \{.*?\n  \},', '"grid": null,', path.read_text(), flags=re.DOTALL)
        tiny_project.replace(path, lambda path, text=text: path.write_text(text))
    assert "No grid was measured" in render(folder).decode()

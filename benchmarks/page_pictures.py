"""`python -m benchmarks.page_pictures`: photograph report/index.html in headless Chromium.

It writes docs/results/report.png (the first screen) and docs/results/gallery.png (the gallery's
first cards). It needs Chromium, and the development requirements.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PAGE, OUT = Path("report/index.html"), Path("docs/results")
WIDTH, HEIGHT = 1200, 1500
COLOURS = 256  # of a picture, which keeps it small


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not PAGE.exists():
        sys.exit(f"error: needs Chromium, and {PAGE} from `make repro`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = started.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(PAGE.absolute().as_uri())
        _write(OUT / "report.png", tab.screenshot())
        _write(OUT / "gallery.png", _first_cards(tab))
        started.close()


def _first_cards(tab: Page) -> bytes:
    """Return a picture of the first four cards of the gallery."""
    boxes = [card.bounding_box() for card in tab.locator("#gallery article").all()[:4]]
    found = [box for box in boxes if box is not None]
    top, left = min(box["y"] for box in found), min(box["x"] for box in found)
    bottom = max(box["y"] + box["height"] for box in found)
    right = max(box["x"] + box["width"] for box in found)
    area = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return tab.screenshot(full_page=True, clip=area)  # type: ignore[arg-type]


def _write(path: Path, content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()

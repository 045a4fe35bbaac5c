"""`python -m benchmarks.page_pictures`: photograph report/index.html in headless Chromium.

It writes into docs/results: the first screen as report.png, report-dark.png and report-phone.png,
and the first cards of the gallery as gallery.png. It needs Chromium, and the development
requirements.
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PAGE, OUT = Path("report/index.html"), Path("docs/results")
DESKTOP, PHONE, HEIGHT = 1200, 390, 1500  # pixels
COLOURS = 256  # of a picture, which keeps it small


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not PAGE.exists():
        sys.exit(f"error: needs Chromium, and {PAGE} from `make repro`")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        light = _opened(started, DESKTOP, "light")
        _write(OUT / "report.png", light.screenshot())
        _write(OUT / "gallery.png", _first_cards(light))
        _write(OUT / "report-dark.png", _opened(started, DESKTOP, "dark").screenshot())
        _write(OUT / "report-phone.png", _opened(started, PHONE, "light").screenshot())
        started.close()


def _opened(browser: Browser, width: int, scheme: Literal["light", "dark"]) -> Page:
    tab = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    tab.goto(PAGE.absolute().as_uri())
    return tab


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

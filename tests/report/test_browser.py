"""The page in a real browser: headless Chromium through Playwright."""

import shutil

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium here; .ci/run installs it"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning"
    ),
]
DESKTOP, PHONE = 1280, 390  # pixels


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(rendered, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_bytes(rendered)
    return path.as_uri()


@pytest.fixture
def opened(browser, address, request):
    """The page, opened, with all that its console said and all that it asked for."""
    width, scheme, scripts = getattr(request, "param", (DESKTOP, "light", True))
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
    )
    tab = context.new_page()
    tab.said, tab.asked = [], []
    tab.on("console", lambda message: tab.said.append(message.text))
    tab.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.on("request", lambda asked: tab.asked.append(asked.url))
    tab.goto(address)
    yield tab
    context.close()


def test_the_page_asks_for_nothing_and_complains_of_nothing(opened, address):
    opened.wait_for_load_state("networkidle")
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [address]


def test_every_image_is_decoded(opened):
    counts = opened.evaluate(
        "[document.images.length, [...document.images].filter(i => !i.naturalWidth).length]"
    )
    assert counts[0] > 20
    assert counts[1] == 0


def test_hostile_class_names_do_nothing(opened):
    assert opened.title() == "Hardening report: refreshed"
    shown = opened.locator("section#classes tbody th").all_inner_texts()
    assert "<script>document.title = 'owned'</script>" in shown
    assert "{{ 7 * 7 }}" in shown


def test_the_policy_stops_scripts_and_foreign_images(opened):
    opened.evaluate(
        """() => {
          const image = document.createElement('img');
          image.src = 'http://127.0.0.1:9/x.png';
          document.body.append(image);
        }"""
    )
    opened.wait_for_timeout(100)
    assert any("Content Security Policy" in text for text in opened.said)


@pytest.mark.parametrize("opened", [(DESKTOP, "light", True), (PHONE, "dark", True)], indirect=True)
def test_structure_and_contrast_pass_axe(opened):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened, options={"runOnly": ["wcag2a", "wcag2aa", "best-practice"]})
    assert found.response["violations"] == [], found.generate_report()


@pytest.mark.parametrize(
    "opened", [(DESKTOP, "light", True), (PHONE, "light", True)], indirect=True
)
def test_nothing_is_wider_than_the_window(opened):
    wide = opened.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0


@pytest.mark.parametrize("opened", [(DESKTOP, "light", False)], indirect=True)
def test_everything_is_there_without_scripts(opened):
    assert opened.locator("section").count() == 8
    assert opened.locator("section#checks details[open]").count() == 1


def test_the_keyboard_reaches_sections_and_details(opened):
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    closed = opened.locator("section#checks details:not([open]) summary").first
    closed.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("section#checks details[open]").count() == 2


def test_it_prints(opened):
    pdf = opened.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    opened.emulate_media(media="print")
    assert not opened.locator("nav").is_visible()
    closed = opened.locator("details:not([open]) table").first
    assert closed.evaluate("table => table.checkVisibility({contentVisibilityAuto: true})")

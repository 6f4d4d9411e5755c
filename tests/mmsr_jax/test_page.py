"""The page in a real browser. Without one on the machine, what can be said of its text alone."""

import base64
import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as pictures
from playwright.sync_api import Browser, Error, Page, sync_playwright

from mmsr_jax.report.page import Curves, Picture, Table, write_page

WINDOW_HU = (-1000.0, 400.0)
HOSTILE = """</script><script>document.title="broken"</script> "quoted" <b>&amp;"""
ROWS, COLUMNS = 60, 80


def images(seed: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-1, 1, (ROWS, COLUMNS)).astype(np.float32) for name in names}


PICTURES = [
    Picture("first", images(0, ("clinical", "bicubic", "SR", "truth")), 0.08),
    Picture(f"second {HOSTILE}", images(1, ("clinical", "bicubic", "SR")), 0.08),
]
REGIONS = [Picture("bronchus", images(2, ("clinical", "SR")), 0.08)]


def hu(image: np.ndarray) -> np.ndarray:
    low, high = WINDOW_HU
    return np.rint((image.astype(np.float64) + 1) / 2 * (high - low) + low)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    columns = [f"metric {index}" for index in range(14)]
    write_page(
        file,
        title=f"run {HOSTILE}",
        window_hu=WINDOW_HU,
        pictures=PICTURES,
        regions=REGIONS,
        curves=[
            Curves("loss", {"one": ([1, 2, 3], [3.0, 2.0, 1.0]), "two": ([1, 2], [900.0, 2.0])}),
            Curves("correlation", {"one": ([1, 2], [-0.2, 0.9])}),
        ],
        tables=[Table("Scores", "Data range 2.", columns, {"SR": ["1.000 ± 0.100"] * 14})],
        config=json.dumps({"name": HOSTILE}, indent=2),
    )
    return file


# ---- without a browser ------------------------------------------------------------------------


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loads = ("src", "href", "xlink:href", "action", "srcset")
        self.found += [value or "" for name, value in attrs if name in loads]


def test_nothing_refers_outside(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    parser = _Addresses()
    parser.feed(text)
    assert all(address.startswith(("#", "data:")) for address in parser.found)
    assert parser.tags.count("script") == 2
    assert parser.tags.count("svg") == 2
    assert "url(http" not in text
    assert "@import" not in text


def test_the_same_input_gives_the_same_page(path: Path, tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        write_page(
            page, title="t", window_hu=WINDOW_HU, pictures=PICTURES, regions=(), tables=(),
            curves=[Curves("loss", {"one": ([1, 2], [1.0, 2.0])})], config="",
        )  # fmt: skip
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.html", "b.html"}


# ---- in a browser -----------------------------------------------------------------------------


def _launch(browsers) -> Browser:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    try:
        return browsers.chromium.launch(executable_path=installed, args=["--no-sandbox"])
    except Error as error:
        if installed:
            raise
        pytest.skip(f"no browser ({str(error).splitlines()[0]}): playwright install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as browsers:
        instance = _launch(browsers)
        yield instance
        instance.close()


@dataclasses.dataclass
class Opened:
    page: Page
    requests: list[str]
    problems: list[str]


def opened(browser: Browser, path: Path, **options) -> Opened:
    context = browser.new_context(**({"viewport": {"width": 1200, "height": 1000}} | options))
    context.set_offline(True)
    page, requests, problems = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=yes]", timeout=20_000)
    return Opened(page, requests, problems)


@pytest.fixture
def shown(browser: Browser, path: Path) -> Iterator[Opened]:
    one = opened(browser, path)
    yield one
    assert one.problems == []
    one.page.context.close()


def canvas(page: Page, selector: str) -> np.ndarray:
    """Grey values (rows, columns) of a canvas."""
    address = page.eval_on_selector(selector, "canvas => canvas.toDataURL('image/png')")
    png = base64.b64decode(address.partition(",")[2])
    return np.rint(255 * pictures.imread(io.BytesIO(png), format="png")[..., 0])


def grey(image: np.ndarray, level: float, width: float) -> np.ndarray:
    return np.clip(np.floor(((hu(image) - level) / width + 0.5) * 255 + 0.5), 0, 255)


def set_range(page: Page, name: str, value: float) -> None:
    page.eval_on_selector(
        f"#{name}",
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }",
        value,
    )


def columns_equal(viewer: np.ndarray, image: np.ndarray, columns: slice) -> bool:
    """Whether part of the viewer shows an image of `ROWS` × `COLUMNS`, fitted to its width."""
    size = viewer.shape[1] / COLUMNS
    top = (viewer.shape[0] - ROWS * size) / 2
    places = np.arange(COLUMNS)[columns]
    at = [np.rint(top + (np.arange(ROWS) + 0.5) * size), np.rint((places + 0.5) * size)]
    seen = viewer[np.ix_(*(index.astype(int) for index in at))]
    return bool((seen == grey(image[:, columns], -300, 1400)).all())


def test_only_the_file_itself_is_requested(shown: Opened, path: Path) -> None:
    shown.page.select_option("#picture", index=1)
    shown.page.click("#in")
    assert shown.requests == [path.as_uri()]


def test_the_divider_moves_by_mouse_and_by_its_range(shown: Opened) -> None:
    page, left, right = shown.page, *(PICTURES[0].images[n] for n in ("clinical", "SR"))
    assert page.input_value("#left") == "clinical"
    assert page.input_value("#right") == "SR"
    before = canvas(page, "#viewer")
    assert columns_equal(before, left, slice(0, 39))
    assert columns_equal(before, right, slice(41, COLUMNS))

    box = page.locator("#viewer").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=5)
    page.mouse.up()
    assert int(page.input_value("#divider")) == pytest.approx(250, abs=5)
    after = canvas(page, "#viewer")
    assert columns_equal(after, left, slice(0, 19))
    assert columns_equal(after, right, slice(21, COLUMNS))

    set_range(page, "divider", 1000)
    assert columns_equal(canvas(page, "#viewer"), left, slice(0, COLUMNS - 1))
    page.focus("#divider")
    page.keyboard.press("Home")
    assert columns_equal(canvas(page, "#viewer"), right, slice(1, COLUMNS))


def test_window_and_level_change_the_pixels(shown: Opened) -> None:
    image = REGIONS[0].images["SR"]
    target = "#gallery canvas >> nth=1"
    np.testing.assert_array_equal(canvas(shown.page, target), grey(image, -300, 1400))
    before = canvas(shown.page, "#viewer")
    set_range(shown.page, "level", -500)
    set_range(shown.page, "width", 300)
    np.testing.assert_array_equal(canvas(shown.page, target), grey(image, -500, 300))
    assert (canvas(shown.page, "#viewer") != before).mean() > 0.3
    assert shown.page.text_content("#level-value") == "-500"
    shown.page.click("#reset")
    np.testing.assert_array_equal(canvas(shown.page, target), grey(image, -300, 1400))
    np.testing.assert_array_equal(canvas(shown.page, "#viewer"), before)


def test_zooming_magnifies_and_dragging_moves(shown: Opened) -> None:
    page = shown.page
    set_range(page, "divider", 0)
    box = page.locator("#viewer").bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
    before = canvas(page, "#viewer")
    for _ in range(6):
        page.mouse.wheel(0, -100)
    page.wait_for_timeout(100)
    after = canvas(page, "#viewer")
    runs = [np.diff(np.flatnonzero(np.diff(v[len(v) // 2].astype(int)))) for v in (before, after)]
    assert np.median(runs[1]) > 3 * np.median(runs[0])
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    moved, shift = canvas(page, "#viewer"), round(0.2 * before.shape[1])
    overlap = moved[:, 4 : 400 - shift] == after[:, 4 + shift : 400]
    assert overlap.mean() > 0.95
    page.click("#reset")
    set_range(page, "divider", 0)
    np.testing.assert_array_equal(canvas(page, "#viewer"), before)


def test_pictures_and_sides_can_be_chosen(shown: Opened) -> None:
    page = shown.page
    set_range(page, "divider", 1000)
    page.select_option("#left", "truth")
    assert columns_equal(canvas(page, "#viewer"), PICTURES[0].images["truth"], slice(0, 79))
    page.select_option("#picture", index=1)
    assert page.input_value("#right") == "SR"
    assert page.locator("#left option").all_text_contents() == ["clinical", "bicubic", "SR"]
    page.select_option("#left", "bicubic")
    assert columns_equal(canvas(page, "#viewer"), PICTURES[1].images["bicubic"], slice(0, 79))


def test_the_readout_gives_hounsfield_units(shown: Opened) -> None:
    page = shown.page
    box = page.locator("#viewer").bounding_box()
    cell = box["width"] / COLUMNS
    top = (box["height"] - ROWS * cell) / 2
    page.mouse.move(box["x"] + 10.5 * cell, box["y"] + top + 7.5 * cell)
    expected = [int(hu(PICTURES[0].images[name])[7, 10]) for name in ("clinical", "SR")]
    assert page.text_content("#readout") == (
        f"row 7, column 10: clinical {expected[0]} HU, SR {expected[1]} HU"
    )


def test_hostile_text_is_text(shown: Opened) -> None:
    page = shown.page
    assert page.title() == f"run {HOSTILE}"
    assert page.text_content("h1") == f"run {HOSTILE}"
    assert page.locator("#picture option").all_text_contents()[1] == f"second {HOSTILE}"
    assert json.loads(page.text_content("pre")) == {"name": HOSTILE}
    assert page.locator("script").count() == 2


def test_what_it_is_for_and_the_table_are_there(shown: Opened) -> None:
    page = shown.page
    assert "not for diagnosis" in page.text_content(".warning")
    assert page.locator("tbody td").all_text_contents() == ["1.000 ± 0.100"] * 14
    assert "Data range 2." in page.text_content(".caption")
    assert page.locator(".curves svg").count() == 2
    assert page.locator("#gallery canvas").count() == 2


@functools.cache
def luminance(color: str) -> float:
    rgb = np.array([float(v) for v in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone(browser: Browser, path: Path, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    one = opened(browser, path, color_scheme=scheme, **phone)
    page = one.page
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.locator("#viewer").bounding_box()["width"] > 300
    sizes, pairs = page.evaluate(
        """() => {
          const names = "p, td, th, label, button, figcaption, h1, h2";
          const texts = [...document.querySelectorAll(names)];
          const style = (element) => getComputedStyle(element);
          const ground = (element) => {
            for (let e = element; e; e = e.parentElement) {
              if (style(e).backgroundColor !== "rgba(0, 0, 0, 0)") return style(e).backgroundColor;
            }
            return "rgb(255, 255, 255)";
          };
          return [texts.map((e) => parseFloat(style(e).fontSize)),
                  texts.map((e) => [style(e).color, ground(e)])];
        }"""
    )
    assert min(sizes) >= 14
    for ink, ground in pairs:
        light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.1, level AA
    page.locator("#in").tap()
    assert one.problems == []
    page.context.close()

"""The page of explore in Chromium: what is drawn, and what the mouse does."""

import io
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastlatent
from fastlatent.commands.exploration.subject import Subject

pytest.importorskip("bokeh")
webdriver = pytest.importorskip("selenium.webdriver")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium or its driver is not installed"
)

SIZE = (1200, 900)
PATIENCE = 30.0  # seconds

BOX = """
const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name(arguments[0]));
const box = view.el.getBoundingClientRect();
return [box.left, box.top, box.right, box.bottom];
"""
TABS = """
const found = [];
(function walk(node) {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children) {
    if (child.classList.contains("bk-tab")) found.push(child);
    walk(child);
  }
})(document.body);
return found;
"""
FILE = """
const found = [];
(function walk(node) {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children) {
    if (child.matches("input[type=file]")) found.push(child);
    walk(child);
  }
})(document.body);
return found[0];
"""
PLACE = """
const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name("map"));
const ends = Bokeh.documents[0].get_model_by_name("ends").data;
const k = [...ends.name].indexOf(arguments[0]);
const box = view.el.getBoundingClientRect();
return [box.left + view.frame.x_scale.compute(ends.x[k]),
        box.top + view.frame.y_scale.compute(ends.y[k])];
"""


class Browser:
    """A window of Chromium on the page."""

    def __init__(self, driver: Any):
        self.driver = driver
        metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, address: str) -> None:
        self.driver.get(address)
        wait_for(lambda: self.run("return !!(window.Bokeh && Bokeh.documents[0]?.is_idle)"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def screen(self) -> np.ndarray:
        """What the window shows: (height, width, 3)."""
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png()))
        return np.asarray(picture.convert("RGB"))

    def drawn(self, name: str) -> np.ndarray:
        """What the window shows of the figure of that name."""
        left, top, right, bottom = (round(at) for at in self.run(BOX, name))
        return self.screen()[top:bottom, left:right]

    def tab(self, title: str) -> None:
        (tab,) = [tab for tab in self.run(TABS) if tab.text == title]
        tab.click()

    def drag(self, handle: str, by: tuple[int, int]) -> None:
        """Drag a handle of the map by that many pixels."""
        x, y = (round(at) for at in self.run(PLACE, handle))
        chain = webdriver.ActionChains(self.driver, duration=20)
        pointer = chain.w3c_actions.pointer_action
        pointer.move_to_location(x, y)
        pointer.pointer_down()
        for share in (0.25, 0.5, 0.75, 1):
            pointer.move_to_location(round(x + share * by[0]), round(y + share * by[1]))
        pointer.pointer_up()
        chain.perform()


def wait_for(condition: Callable[[], Any]) -> None:
    """Come back once the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)


def inked(picture: np.ndarray) -> bool:
    """Whether small images are drawn: as much black as white, of digits, on a page of white."""
    return bool(np.mean(picture < 40) > 0.2 and np.mean(picture > 160) > 0.1)


@contextmanager
def served(name: str, images: int = 60) -> Iterator[str]:
    """The address of a run's page, which a thread serves."""
    from fastlatent.commands.exploration.server import Server

    subject = Subject(fastlatent.load(name, device="cpu"), images, [name])
    servers: queue.Queue[Server] = queue.Queue()

    def serve() -> None:
        server = Server(subject)
        servers.put(server)
        server.run()

    thread = threading.Thread(target=serve)
    thread.start()
    server = servers.get(timeout=PATIENCE)
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Without a sandbox: containers, where tests run, forbid it. The page is our own.
    profile: Path = tmp_path_factory.mktemp("profile")
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={profile}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield chrome
    chrome.quit()


def test_pictures_are_drawn_and_follow_the_mouse(driver: Any, tmp_path: Path) -> None:
    with served("vae-digits") as address:
        browser = Browser(driver)
        browser.open(address)
        wait_for(lambda: inked(browser.drawn("samples")))
        browser.tab("Latents")
        wait_for(lambda: inked(browser.drawn("moved")))
        browser.tab("Map")
        wait_for(lambda: inked(browser.drawn("strip-spherical")))
        assert max(browser.run(BOX, "strip-spherical")[3], browser.run(BOX, "map")[3]) <= SIZE[1]
        before, (x, y) = browser.drawn("strip-spherical"), browser.run(PLACE, "B")
        browser.drag("B", (-40, -30))
        wait_for(lambda: np.abs(np.subtract(browser.run(PLACE, "B"), (x - 40, y - 30))).max() < 3)
        wait_for(lambda: np.any(browser.drawn("strip-spherical") != before))
        assert inked(browser.drawn("strip-spherical"))
        browser.tab("Reconstruct")
        file = tmp_path / "halves.png"
        bright_above = np.kron([[255], [0]], np.ones((40, 80))).astype(np.uint8)
        Image.fromarray(bright_above).save(file)
        browser.run(FILE).send_keys(str(file))
        wait_for(lambda: inked(browser.drawn("reconstructed")))
        above, below = np.array_split(browser.drawn("reconstructed")[40:-10, 20:200], 2)
        assert above.mean() > 200 and below.mean() < 60
        troubles = [entry["message"] for entry in driver.get_log("browser")]
        assert troubles == []

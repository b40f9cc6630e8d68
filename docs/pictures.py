"""The pictures of docs/images, taken of an experiment by a headless Chromium: ``make pictures``.

NNI's web page, TensorBoard as its button opens it, and ``blockswap report``. Needs chromium (Debian's package) and
playwright.
"""

import argparse
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, ViewportSize, sync_playwright

from nni_blockswap.cli import main as blockswap
from nni_blockswap.experiment.service import nnictl

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
SIZE: ViewportSize = {"width": 1500, "height": 900}

AXES = ["params", "macs", "rank", "default"]
"""Beside the blocks."""

NO_ICONS = "i[data-icon-name], [class*=ms-Icon] { visibility: hidden }"
"""The page's icons are a font from the network, without which they are boxes."""


def run_config() -> str:
    """The id of an experiment that ``config.yml`` describes, when it is over."""
    command = [Path(sys.executable).parent / "blockswap", "run", ROOT / "config.yml"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as running:
        said = ""
        for line in running.stdout or ():
            sys.stderr.write(line)
            said += line
    found = re.search(r"nnictl view (\w+)", said)
    if running.returncode != 0 or found is None:
        sys.exit("no experiment, no pictures.")
    return found[1]


def view(experiment: str, port: int) -> None:
    """Serve the web page of an experiment that is over; nnictl gives it three seconds to come up."""
    for _ in range(9):
        (starting := nnictl("view", experiment, "--port", str(port))).communicate()
        if starting.returncode == 0:
            return
    sys.exit(f"nnictl cannot show '{experiment}'.")


def web_page(page: Page, address: str) -> None:
    """Block choices as axes, accuracy by epoch."""
    page.goto(f"{address}/detail")
    page.get_by_role("tab", name="Hyper-parameter").click()
    page.get_by_role("button", name="Add/Remove axes").click()
    axes = page.locator(".ms-Dialog-main")
    axes.get_by_text("block_00").wait_for()
    names = axes.locator(".ms-Checkbox-text").all_inner_texts()
    for name in ["Select all", *(one for one in names if one.startswith("block_")), *AXES]:
        axes.get_by_text(name, exact=True).first.click()
    axes.get_by_role("button", name="Save").click()
    shoot(page, "trials")
    page.get_by_role("tab", name="Intermediate result").click()
    shoot(page, "curves")


def tensorboard(page: Page) -> None:
    """What opens where all trials are ticked and the button is pressed."""
    for box in page.locator(".detail-check label").all():
        box.click()
    page.get_by_role("button", name="TensorBoard", exact=True).click()
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Ok").click()
    board = opened.value
    board.set_viewport_size(SIZE)
    board.get_by_text("attention: image").first.wait_for(timeout=120_000)
    board.locator("button", has_text="Settings").click()  # puts them away
    shoot(board, "tensorboard")


def shoot(page: Page, name: str) -> None:
    """Take a picture of what the page shows."""
    page.add_style_tag(content=NO_ICONS)
    page.wait_for_timeout(3000)  # until it has drawn, and has stopped moving
    page.screenshot(path=IMAGES / f"{name}.png")


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", help="id of one that is over (default: config.yml is run first)")
    experiment = parser.parse_args().experiment or run_config()
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    view(experiment, port)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_context(viewport=SIZE).new_page()
            web_page(page, f"http://localhost:{port}")
            tensorboard(page)
            browser.close()
    finally:
        nnictl("stop", experiment).communicate()
    with TemporaryDirectory() as folder:
        blockswap(["report", experiment, "--out", folder])
        shutil.copy(Path(folder) / "report.png", IMAGES / "report.png")


if __name__ == "__main__":
    main()

"""A real browser for tests: Debian's headless Chromium, driven over its DevTools protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

PROGRAM = shutil.which("chromium-headless-shell")
WITHOUT_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
T = TypeVar("T")


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = json.loads((await self._socket.receive(timeout=60)).data)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, url: str) -> None:
        """Go there."""
        await self.call("Page.navigate", url=url)

    async def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def text(self) -> str:
        """What a person reads."""
        return str(await self.evaluate("document.body ? document.body.innerText : ''"))

    async def wait_for(self, *words: str, seconds: float = 120) -> str:
        """The text, once all words are in it.

        Raises:
            AssertionError: they never were; the message names the first that is missing.
        """
        deadline = time.monotonic() + seconds
        while missing := [word for word in words if word not in (text := await self.text())]:
            assert time.monotonic() < deadline, f"{missing[0]} is not on the page:\n{text[:3000]}"
            await asyncio.sleep(0.5)
        return text

    async def wait_until(self, script: str, seconds: float = 60) -> None:
        """Evaluate again and again, until it is true."""
        deadline = time.monotonic() + seconds
        while not await self.evaluate(script):
            assert time.monotonic() < deadline, f"never true on the page: {script}"
            await asyncio.sleep(0.5)

    async def picture(self, path: Path) -> None:
        """What a person sees, as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


def with_page(
    profile: Path, visit: Callable[[Page], Coroutine[Any, Any, T]], size: tuple[int, int] = (1600, 2400)
) -> T:
    """Start a browser, have a page visited, end the browser.

    Args:
        profile: folder that the browser may fill.
        size: of the window, in pixels.
    """
    assert PROGRAM is not None
    options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
    command = [PROGRAM, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        return asyncio.run(_visit(profile, visit))
    finally:
        os.killpg(browser.pid, signal.SIGKILL)  # all its processes: those that draw would go on without it
        browser.wait()


async def _visit(profile: Path, visit: Callable[[Page], Coroutine[Any, Any, T]]) -> T:
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 60
    while not port_file.exists() or not port_file.read_text().strip():
        assert time.monotonic() < deadline, "the browser does not start"
        await asyncio.sleep(0.1)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            address = next(page["webSocketDebuggerUrl"] for page in await answer.json() if page["type"] == "page")
        async with session.ws_connect(address, max_msg_size=0) as socket:
            page = Page(socket)
            await page.call("Page.enable")
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_ASSISTANT)
            return await visit(page)

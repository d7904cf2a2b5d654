"""A real browser without a window: Chromium by its DevTools protocol, over a socket pair; no library for it."""

import asyncio
import base64
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S = 60.0


def found() -> str | None:
    """The browser of this machine; ``HEADROOM_BROWSER`` names another."""
    return os.environ.get("HEADROOM_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []  # of scripts, and of what the content security policy blocked
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol."""
        return await self._browser.call(method, self._session, **parameters)

    async def js(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if problem := found.get("exceptionDetails"):
            raise AssertionError(problem.get("exception", {}).get("description") or problem["text"])
        return found["result"].get("value")

    async def until(self, expression: str, within_s: float = 60.0) -> Any:
        """Wait until it is true; its value."""
        async with asyncio.timeout(within_s):
            while True:
                if found := await self.js(f"Promise.resolve({expression}).then(Boolean)"):
                    return found
                await asyncio.sleep(0.03)

    async def open(self, url: str) -> None:
        """Go there."""
        await self.call("Page.navigate", url=url)

    async def theme(self, name: str) -> None:
        """``dark`` or ``light``."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def press(self, key: str, code: int) -> None:
        """A key, by its name and number."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    async def shot(self, file: Path) -> None:
        """A picture of the whole page."""
        picture = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(picture["data"]))


class Browser:
    """A running browser."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._tabs: dict[str, Tab] = {}
        self._last = 0

    async def call(self, method: str, session: str = "", **parameters: Any) -> Any:
        """A command of the protocol, and its answer."""
        self._last += 1
        number = self._last
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._writer.write(json.dumps(message).encode() + b"\0")
        return await answer

    async def read(self) -> None:
        """Take what comes, until the end."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self._take(json.loads((await self._reader.readuntil(b"\0"))[:-1]))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            answer = self._answers.pop(message["id"])
            if "error" in message:
                answer.set_exception(AssertionError(message["error"]["message"]))
            else:
                answer.set_result(message["result"])
            return
        tab, facts = self._tabs.get(message.get("sessionId", "")), message.get("params", {})
        if tab is None:
            return
        if message["method"] == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            tab.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message["method"] == "Log.entryAdded" and facts["entry"]["source"] == "security":
            tab.errors.append(facts["entry"]["text"])
        elif message["method"] == "Network.requestWillBeSent":
            tab.requests.append(facts["request"]["url"])

    async def tab(self, width: int = 1280, height: int = 900) -> Tab:
        """A new page."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = self._tabs[attached["sessionId"]] = Tab(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await tab.call("Emulation.setDeviceMetricsOverride", **size)
        return tab


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    """A browser with an empty profile in *folder*, killed at the end."""
    here, its = socket.socketpair()
    options = [
        str(found()), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-sandbox",
        "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
        "--no-proxy-server", "about:blank",
    ]  # fmt: skip

    def connect() -> None:
        for descriptor in (3, 4):  # it reads from the one and writes to the other
            os.dup2(its.fileno(), descriptor)

    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *options, pass_fds=(3, 4), preexec_fn=connect, stdout=quiet, stderr=quiet
    )
    its.close()
    reader, writer = await asyncio.open_connection(sock=here, limit=2**27)
    made = Browser(reader, writer)
    reading = asyncio.create_task(made.read())
    try:
        async with asyncio.timeout(START_S):
            await made.call("Browser.getVersion")
        yield made
    finally:
        process.kill()
        await process.wait()
        await reading
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

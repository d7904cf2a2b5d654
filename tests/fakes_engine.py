"""A whole vLLM at one address: its own pages, and scripted replies. What a source finds has no other address."""

import asyncio

from tests.fakes_wire import Script, ScriptedEngine, reply, stream


def pages(model: str = "m") -> dict[str, bytes]:
    """The pages of an engine that serves one model."""
    return {
        "/health": b"",
        "/version": b'{"version":"0.10.0"}',
        "/v1/models": b'{"data":[{"id":"%b","owned_by":"vllm","root":"%b","max_model_len":4096}]}'
        % ((model.encode(),) * 2),
        "/metrics": b"vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n",
    }


class WholeEngine(ScriptedEngine):
    """GET is answered from ``pages``; every other request by a script, left out: one token."""

    def __init__(self, *scripts: Script, model: str = "m") -> None:
        super().__init__(*(scripts or ([stream(" x")],)))
        self.pages = pages(model)
        self.asked: list[str] = []

    @property
    def at(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            self.asked.append(path.decode())
            body = self.pages.get(path.decode())
            writer.write(reply(b"", 404) if body is None else reply(body))
            await writer.drain()
            return True
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        self.requests.append(head + await reader.readexactly(int(length.split(b":")[1])))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return all([await self._do(step, reader, writer) for step in script])

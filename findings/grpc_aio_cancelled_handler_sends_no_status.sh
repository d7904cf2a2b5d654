#!/usr/bin/env bash
# grpcio 1.85.1: where the task of an asyncio server's handler is cancelled by the server itself, the call gets no status:
# its client waits until the server's objects are collected. `context.abort`, called in another task, ends the call and
# wakes the handler's `context.read()`.
# Expected: a call whose handler is cancelled ends for its client. Exits non-zero if that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'grpcio==1.85.1'
cat >"$folder/call.py" <<'PY'
import asyncio
import sys

import grpc
from grpc import aio

kept = []  # the server's objects: else a collection resets the call sooner or later


async def handler(_, context):
    kept.append((asyncio.current_task(), context))
    await context.read()
    await context.read()


async def end(how):
    task, context = kept[0]
    if how == "cancel":
        task.cancel()
        return
    try:
        await context.abort(grpc.StatusCode.ABORTED, "over")
    except aio.AbortError:
        pass


async def main(how):
    server = aio.server()
    methods = {"Process": grpc.stream_stream_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/a.B/Process")()
        await call.write(b"x")
        while not kept:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        await end(how)
        try:
            print((await asyncio.wait_for(call.code(), 5)).name)
        except TimeoutError:
            print("none in 5 s")
    await server.stop(0)


asyncio.run(main(sys.argv[1]))
PY
cancelled=$("$folder/venv/bin/python" "$folder/call.py" cancel 2>/dev/null | tail -n 1)
aborted=$("$folder/venv/bin/python" "$folder/call.py" abort 2>/dev/null | tail -n 1)
printf 'status after task.cancel():    %s\nstatus after context.abort():  %s\n' "$cancelled" "$aborted"
[[ $cancelled == 'none in 5 s' && $aborted == ABORTED ]]

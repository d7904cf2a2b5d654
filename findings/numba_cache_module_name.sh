#!/usr/bin/env bash
# numba 0.68.1: what `cache=True` keeps of a function can only be loaded where the module name of the process that kept it
# can be imported, though the cache is found again by the file of the source. A host that executes a plug-in file under a
# name of its own (one a process, as importlib recipes do) compiles it in the first process and fails in the next, with
# ModuleNotFoundError for a name that exists nowhere on disk. Cache files are "found", so nothing is compiled anew either.
# Expected: the cache is missed, or the entry loads. Exits non-zero if that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numba==0.68.1' 'numpy==2.4.6'
cat >"$folder/plugin.py" <<'PY'
from numba import njit


@njit
def twice(x):
    return 2.0 * x


@njit("f8(f8)", cache=True)
def loop(x):
    return twice(x) + 1.0
PY
cat >"$folder/host.py" <<'PY'
import sys
import types
from pathlib import Path

name, path = sys.argv[1], Path(sys.argv[2])
module = sys.modules[name] = types.ModuleType(name)
module.__file__ = str(path)
exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
print(name, module.loop(3.0))
PY
cd "$folder"
first=$(venv/bin/python host.py plugin_of_process_1 plugin.py)
again=$(venv/bin/python host.py plugin_of_process_1 plugin.py)
second=$(venv/bin/python host.py plugin_of_process_2 plugin.py 2>&1 || true)
printf 'first process:            %s\nthe same name again:      %s\nanother name, same file:  %s\n' "$first" "$again" "$(tail -n 1 <<<"$second")"
[ "$first" = "plugin_of_process_1 7.0" ]
[ "$again" = "plugin_of_process_1 7.0" ]
grep -q "ModuleNotFoundError: No module named 'plugin_of_process_1'" <<<"$second"

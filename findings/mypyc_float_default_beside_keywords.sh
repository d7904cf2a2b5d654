#!/usr/bin/env bash
# mypyc 2.4.1: a method with a parameter of type float that has a default, beside `**keywords`, is valid to Python and to
# mypy, yet its translation ends with "ValueError: non-default argument follows default argument" from `inspect`, in the
# step that writes down the text signature for the docstring. With the type `float | int`, or without `**keywords`, it is
# translated. Nothing in the message names the file, the class or the method.
# Expected: both are translated. Exits non-zero if that has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'mypy==2.4.1' 'setuptools==80.9.0'
cat >"$folder/translate.py" <<'PY'
import sys
from pathlib import Path

from mypyc.build import mypycify

source = Path(f"{sys.argv[1]}.py")
source.write_text(
    f"""class Report:
    def __init__(self, at_s: float, running: {sys.argv[2]} = 0.5{sys.argv[3]}) -> None:
        self.at_s = at_s
""",
    encoding="utf-8",
)
compile(source.read_text(encoding="utf-8"), str(source), "exec")  # Python takes it
mypycify([str(source)])
print("translated")
PY
cd "$folder"
plain=$(venv/bin/python translate.py plain float ', **signals: float' 2>&1 || true)
union=$(venv/bin/python translate.py union 'float | int' ', **signals: float' 2>&1 || true)
without=$(venv/bin/python translate.py without float '' 2>&1 || true)
last() { tail -n 1 <<<"$1"; }
printf 'float = 0.5, **signals:        %s\nfloat | int = 0.5, **signals:  %s\nfloat = 0.5:                   %s\n' \
  "$(last "$plain")" "$(last "$union")" "$(last "$without")"
grep -q 'non-default argument follows default argument' <<<"$(last "$plain")"
[[ $(last "$union") == translated && $(last "$without") == translated ]]

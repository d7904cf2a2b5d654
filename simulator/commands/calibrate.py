"""`python -m simulator calibrate`: correct the efficiency tables by a user's measurements, or fit one engine to a
gateway's record.

Reads a CSV as `simulator.calibration.measurements` describes, or a record as a gateway writes it. Of a CSV prints
errors before and after correction and writes the corrections as a profile; for developers, errors of the tables as they
are or fitted without each part in turn, and fitted tables as Python. Of a record prints each backend's coefficients as
YAML.
"""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.arguments import WRONG_USE, Stop
from simulator.calibration.attempts import read_attempts
from simulator.calibration.bands import COVERED, coverage, log_errors, widened
from simulator.calibration.design import Column
from simulator.calibration.files import read
from simulator.calibration.fit import COMMITTED, PRIOR, Tables, fit, predicted, seen
from simulator.calibration.from_record import fit_log, fragment
from simulator.calibration.measurements import Measurement, Skipped
from simulator.calibration.own import Found, described, find
from simulator.calibration.profile_file import profile_text
from simulator.calibration.report import QUANTITIES, errors, half, rank_correlation, text
from simulator.calibration.write import tables_source
from simulator.errors import BadFile, BadRecord

_LEAVE_OUT: Final[dict[str, Callable[[Measurement], str]]] = {
    "source": lambda m: m.source,
    "card": lambda m: m.shape.card.name,
    "half": half,
}


def run(given: Namespace) -> int:
    """Run the command; 0, or 2 when the file has nothing to fit."""
    if (given.csv is None) == (given.record is None):
        raise Stop("error: give either a CSV or --record FILE", WRONG_USE)
    if given.record:
        return _from_record(given.record)
    try:
        measured, skipped = read(given.csv)
    except BadFile as bad:
        _print(str(bad))
        return 2
    _print(_left_out(measured, skipped))
    _print_unreadable(given.csv, skipped)
    if not measured:
        _print(f"{given.csv}: no usable measurement; see simulator/calibration/measurements.py for the columns")
        return 2
    actual = seen(measured)
    own = _own(measured, actual, given)
    estimates = own.estimates if own is not None else _predictions(measured, given)
    ranks = [(name, rank_correlation(*rows)) for name, *rows in zip(QUANTITIES, actual, estimates, strict=True)]
    _print(_RULE)
    _print(text(errors(measured, actual, estimates), ranks))
    if given.leave_one_out:
        _print(_covered(measured, log_errors(actual, estimates), _LEAVE_OUT[given.leave_one_out]))
    if given.write:
        given.write.write_text(tables_source(_fitted_with_bands(measured), _made_from(measured)), encoding="utf-8")
        _print(f"wrote {given.write}")
    return _profiled(own, given)


def _own(measured: Sequence[Measurement], actual: NDArray[np.float64], given: Namespace) -> Found | None:
    """The corrections by these rows; None where the tables themselves are tested or written, or rows are too few."""
    if given.as_is or given.leave_one_out or given.write:
        return None
    try:
        return find(measured, actual)
    except ValueError as few:
        _print(f"no corrections: {few}; the tables are judged as they are")
        given.as_is = True
        return None


def _profiled(own: Found | None, given: Namespace) -> int:
    """State what the corrections are worth, and write them where they help; 2 where that was wanted and is refused."""
    if own is None:
        return WRONG_USE if given.profile else 0
    _print(_worth(own))
    if not own.helps:
        _print(
            "refused: the corrections make rows that were left out worse. Rows that contradict one another, or one "
            "column that is not as it is stated (units, batch, precision), are the usual reasons."
        )
        return WRONG_USE if given.profile else 0
    if given.profile:
        profile = described(own, {"made_from": f"{given.csv.name}, {own.profile.facts['rows']} rows"})
        given.profile.write_text(profile_text(profile), encoding="utf-8")
        _print(f"wrote {given.profile}; apply it with `profile: {given.profile}` in router.yaml or pool.yaml")
    return 0


def _worth(own: Found) -> str:
    (tables, tables_p90), (fitted, fitted_p90), (left_out, left_out_p90) = own.before, own.after, own.left_out
    return (
        f"median error: of the tables {tables:.1%} (p90 {tables_p90:.1%}), corrected {fitted:.1%} "
        f"(p90 {fitted_p90:.1%}),\n"
        f"on rows left out of finding the corrections {left_out:.1%} (p90 {left_out_p90:.1%});\n"
        f"error of a corrected step (one sigma): {own.profile.band:.1%}"
    )


_RULE: Final = (
    "TPOT: rows whose ITL is direct (measured itself; not 'derived ...', not an upper bound). In a closed loop the\n"
    "batch is not known, so it is expected from the users and the measured first token (Little's law)."
)


def _fitted_with_bands(measured: Sequence[Measurement]) -> Tables:
    """Tables fitted to everything, as uncertain as they were about the sources left out in turn."""
    off = log_errors(seen(measured), leave_one_out(measured, _LEAVE_OUT["source"]))
    return widened(fit(measured), measured, off)


def _covered(measured: Sequence[Measurement], off: Column, part: Callable[[Measurement], str]) -> str:
    found = coverage(PRIOR, measured, off, part)
    lines = [f"  {name[:30]:30} {rows:6d} {share:8.1%}" for name, (rows, share) in found.items()]
    return "\n".join([f"errors inside the predicted {COVERED:.0%} band (each widened by the others' errors)", *lines])


def _from_record(path: Path) -> int:
    """Print what each backend of the record was measured to take; 2 when none had enough streams."""
    try:
        logs = read_attempts(path)
    except (BadRecord, OSError) as bad:
        _print(str(bad))
        return 2
    fitted = 0
    for name, log in logs.items():
        try:
            _print(fragment(name, fit_log(log)))
            fitted += 1
        except ValueError as few:
            _print(f"# {few}")
    return 0 if fitted else 2


def _predictions(measured: Sequence[Measurement], given: Namespace) -> NDArray[np.float64]:
    if given.as_is:
        return predicted(measured, COMMITTED)
    if given.leave_one_out:
        return leave_one_out(measured, _LEAVE_OUT[given.leave_one_out])
    return predicted(measured, fit(measured))


def leave_one_out(
    measured: Sequence[Measurement],
    part: Callable[[Measurement], str],
    fitted: Callable[[Sequence[Measurement]], Tables] = fit,
) -> NDArray[np.float64]:
    """Predictions of each part by tables fitted to all the other parts."""
    estimates = np.full((len(QUANTITIES), len(measured)), np.nan)
    names = np.array([part(m) for m in measured])
    parts = sorted(set(names.tolist()))
    for number, name in enumerate(parts, start=1):
        _progress(f"{number} of {len(parts)}: fitted without {name}")
        out = np.flatnonzero(names == name)
        others = [m for m, each in zip(measured, names, strict=True) if each != name]
        tables = fitted(others) if others else PRIOR
        estimates[:, out] = predicted([measured[int(i)] for i in out], tables)
    return estimates


def _left_out(measured: Sequence[Measurement], skipped: Sequence[Skipped]) -> str:
    """How many rows are used, and why others are not."""
    why = Counter(each.why for each in skipped).most_common()
    return "\n".join([f"{len(measured)} rows used, {len(skipped)} left out", *(f"  {n:5d}  {w}" for w, n in why)])


_UNREADABLE_SHOWN: Final = 10


def _print_unreadable(path: Path, skipped: Sequence[Skipped]) -> None:
    """Where the file is wrong: the first rows that could not be read, as ``file:line``."""
    for each in [row for row in skipped if row.unreadable][:_UNREADABLE_SHOWN]:
        sys.stderr.write(f"{path}:{each.line}: {each.why}\n")


def _made_from(measured: Sequence[Measurement]) -> str:
    counts = Counter(m.source for m in measured).most_common()
    return ", ".join(f"{source} ({n})" for source, n in counts)


def _progress(text: str) -> None:
    """Show progress if stderr is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")

"""Is slo_headroom never worse? A grid of cells against every baseline: ``python -m tests.bench.grid``.

A cell is workload x promise x tightness x pool x load x seed (``tests/cells.py``); all policies of a cell get the same
arrivals. Attained is the share of all requests that were served within their SLO: refused ones count as missed.
Cells are drawn so that every level of every dimension comes equally often. A cell alone: ``--cell SPEC``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

from simulator.experiment import CLAIRVOYANT
from tests.bench.heatmap import page
from tests.cell_runs import BASELINES, NEAR_CAPACITY, POLICY, WORSE, Result, figures, results
from tests.cells import LEVELS, drawn, parse_cell

# ---- what is printed -----------------------------------------------------------------------


def line(one: Result) -> str:
    """One cell."""
    ours, best = one.runs[POLICY], one.runs[one.best]
    bound = f"  bound {one.runs[CLAIRVOYANT].attained:6.1%}" if CLAIRVOYANT in one.runs else ""
    e2e = f"  mean E2E {ours.e2e_mean_s:.2f} s, {best.e2e_mean_s:.2f} s" if one.cell.promise == "none" else ""
    return (
        f"{one.cell!s:46s} {ours.attained:6.1%}  best {best.attained:6.1%} {one.best:16s} "
        f"{100 * one.ahead:+6.1f} +- {100 * one.noise:3.1f}{bound}{e2e}"
    )


def by_level(found: Sequence[Result]) -> list[str]:
    """A table of every level of every dimension."""
    lines = [f"{'level':24s} cells   mean    least   below -1 point"]
    for name, levels in LEVELS.items():
        for level in levels:
            there = [one.ahead for one in found if getattr(one.cell, name) == level]
            if there:
                worse = sum(ahead < WORSE for ahead in there)
                lines.append(
                    f"{name} {level:{23 - len(name)}s} {len(there):5d} {100 * mean(there):+6.1f}  "
                    f"{100 * min(there):+6.1f}  {worse:5d}"
                )
    return lines


def summary(found: Sequence[Result]) -> list[str]:
    """By level, then the cells that are worse, then what is gained near capacity."""
    lines = ["", *by_level(found)]
    worse_cells = sorted((one for one in found if one.ahead < WORSE), key=lambda one: one.ahead)
    lines.append(f"\n{len(worse_cells)} of {len(found)} cells below -1 point, worst first")
    lines += [line(one) for one in worse_cells]
    facts = figures(found)
    if "near_capacity" in facts:
        near = facts["near_capacity"]
        lines.append(
            f"\nloads {' and '.join(NEAR_CAPACITY)}, {near['cells']} cells: {100 * near['over_single']:+.1f} points "
            f"over the best single baseline ({near['single']}), {100 * near['over_best']:+.1f} over each cell's best"
        )
    if facts["beyond_bound"]:
        lines.append(f"\nthe clairvoyant is beaten by more than 0.2 points in: {', '.join(facts['beyond_bound'])}")
    return lines


def as_json(found: Sequence[Result]) -> dict[str, Any]:
    """Every run of every cell, and the figures."""
    cells = {
        str(one.cell): {
            name: {"attained": run.attained, "e2e_mean_s": run.e2e_mean_s, "requests": run.requests, "cpu_s": run.cpu_s}
            for name, run in one.runs.items()
        }
        for one in found
    }
    return {"figures": figures(found), "cells": cells}


def html(found: Sequence[Result]) -> str:
    """The grid as a page."""
    return page(found, figures(found), by_level(found), line)


def detailed(one: Result) -> list[str]:
    """Workload, SLOs and every run of a cell."""
    cell = one.cell
    slos = ", ".join(f"{c.name}@{c.share:g} {c.slo}" for c in cell.classes)
    lines = [f"{cell}: {cell.generator}", f"  capacity {cell.capacity_per_s:.3g} req/s; {slos}"]
    for name, run in sorted(one.runs.items(), key=lambda item: -item[1].attained):
        lines.append(
            f"  {name:18s} {run.attained:6.1%}  mean E2E {run.e2e_mean_s:6.2f} s"
            f"  {run.requests} requests in {run.span_s:.0f} s  CPU {run.cpu_s:.1f} s"
        )
    return lines


# ---- the command ---------------------------------------------------------------------------


def only_of(text: str) -> dict[str, list[str]]:
    """``promise=e2e|ttft,load=1.3`` as the levels to draw from; ValueError names the choices."""
    only: dict[str, list[str]] = {}
    for part in filter(None, text.split(",")):
        name, _, levels = part.partition("=")
        if name not in LEVELS:
            raise ValueError(f"--only {part!r}: expected a dimension among {', '.join(LEVELS)}")
        only[name] = levels.split("|")
        for level in only[name]:
            if level not in LEVELS[name]:
                raise ValueError(f"--only {part!r}: expected levels among {', '.join(LEVELS[name])}")
    return only


def main() -> None:
    """Draw, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100, help="how many to draw (default 100)")
    parser.add_argument("--seed-base", type=int, default=1, help="of the draw, and the first seed of the cells")
    parser.add_argument("--only", default="", help="levels to draw from: promise=e2e|ttft,load=1.3")
    parser.add_argument(
        "--cell", action="append", default=[], help="this cell instead, such as chat/e2e-edge/one/0.7/s1"
    )
    parser.add_argument("--policies", default=",".join((POLICY, *BASELINES)), help="comma-separated")
    parser.add_argument("--clairvoyant", action="store_true", help="the bound as well (slow)")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: as many as there are cores")
    parser.add_argument("--json", type=Path, help="write every run there")
    parser.add_argument("--html", type=Path, help="write a heat map there")
    typed = parser.parse_args()
    try:
        cells = [parse_cell(text) for text in typed.cell] or drawn(typed.cells, typed.seed_base, only_of(typed.only))
    except ValueError as problem:
        parser.error(str(problem))
    policies = list(dict.fromkeys([POLICY, *typed.policies.split(",")])) + [CLAIRVOYANT] * typed.clairvoyant
    began_s, found = monotonic(), []
    for one in results(cells, policies, typed.jobs):
        found.append(one)
        if typed.cell:
            print("\n".join(detailed(one)))
        print(f"{len(found):4d}/{len(cells)} {monotonic() - began_s:5.0f} s  {line(one)}", flush=True)
    print("\n".join(summary(found)))
    print(
        f"\n{monotonic() - began_s:.0f} s, {sum(run.cpu_s for one in found for run in one.runs.values()):.0f} s of CPU"
    )
    if typed.json:
        typed.json.write_text(json.dumps(as_json(found), indent=2) + "\n", encoding="utf-8")
    if typed.html:
        typed.html.write_text(html(found), encoding="utf-8")


if __name__ == "__main__":
    main()

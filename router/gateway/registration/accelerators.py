"""What the vendors' tools report of this machine's accelerators: products and memory, as each tool prints them.

Pure. Must not depend on how tools are run, or on the table of cards. What a tool prints in another form than it is
known to is no accelerator.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

_MIB: Final = 2**20
_BUS: Final = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d")
_ASCEND_BINS: Final = re.compile(r"910B[123]C?")  # of one row of the table; 910B4 is another chip
_AMD_PRODUCTS: Final = ("card series", "device name", "card model", "card sku")  # releases of ROCm differ
_GAUDI: Final = {"HL-225": "gaudi2", "HL-288": "gaudi2", "HL-325": "gaudi3", "HL-328": "gaudi3", "HL-338": "gaudi3"}


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator. ``products``: what it may be called, the likeliest first."""

    products: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A vendor's tool, and how what it prints is read."""

    command: tuple[str, ...]
    read: Callable[[str], list[Accelerator]]


def of_lines(text: str) -> list[Accelerator]:
    """Lines as ``NVIDIA H100 80GB HBM3, 81559`` or ``HL-225, 98304 MiB``."""
    return [_of_line(line) for line in text.splitlines() if line.strip()]


def _of_line(line: str) -> Accelerator:
    product, _, memory = line.rpartition(",")
    mib = memory.strip().removesuffix("MiB").strip()
    named = _GAUDI.get(product.strip()[:6], product)
    return Accelerator((named,), int(mib) * _MIB if mib.isdecimal() else 0)


def of_rocm(text: str) -> list[Accelerator]:
    """``{"card0": {"Card Series": ..., "VRAM Total Memory (B)": ...}}``, which warnings may precede."""
    try:
        whole = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError):
        return []
    cards = whole.items() if isinstance(whole, dict) else ()
    return [_of_rocm(each) for name, each in cards if name.startswith("card") and isinstance(each, dict)]


def _of_rocm(given: Mapping[str, Any]) -> Accelerator:
    stated = {key.lower(): str(value) for key, value in given.items()}
    memory = stated.get("vram total memory (b)", "")
    products = tuple(stated[key] for key in _AMD_PRODUCTS if key in stated)
    return Accelerator(products, int(memory) if memory.isdecimal() else 0)


def of_npu_smi(text: str) -> list[Accelerator]:
    """A table: a line with the name of each NPU, then one of each chip, with its bus, its memory in use and in all."""
    return list(_of_npu_rows(text))


def _of_npu_rows(text: str) -> Iterator[Accelerator]:
    name = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != len(("name", "health", "power")):
            continue
        if _BUS.fullmatch(cells[1]):
            memory = re.search(r"/\s*(\d+)$", cells[2])
            yield Accelerator((_ascend(name),), int(memory[1]) * _MIB if memory else 0)
        elif found := re.fullmatch(r"\d+\s+(\S+)", cells[0]):
            name = found[1]


def _ascend(name: str) -> str:
    return "ascend 910b" if _ASCEND_BINS.fullmatch(name) else "ascend 910a" if name == "910A" else name


TOOLS: Final = (
    Tool(("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"), of_lines),
    Tool(("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"), of_rocm),
    Tool(("npu-smi", "info"), of_npu_smi),
    Tool(("hl-smi", "-Q", "name,memory.total", "-f", "csv,noheader"), of_lines),
)

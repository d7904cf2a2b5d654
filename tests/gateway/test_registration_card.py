"""The card of a machine, from what the vendors' tools print: executables on the path that print as they do."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from router.gateway.registration.accelerators import TOOLS, Tool, of_lines, of_npu_smi, of_rocm
from router.gateway.registration.card import card_here, card_of
from tests.waiting import until

NPU = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc1                 Version: 24.1.rc1                                              |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     {name:<20}| OK            | 101.8       43                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3318 / {mib:<14}|
+===========================+===============+====================================================+
| 1     {name:<20}| OK            | 92.0        39                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          59351/ {mib:<14}|
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1712733       | python3                  | 48954                   |
+===========================+===============+====================================================+
"""
AMD = """WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card0": {"VRAM Total Memory (B)": "206141652992", "VRAM Total Used Memory (B)": "0",
 "Card Series": "AMD Instinct MI300X OAM", "Card Model": "0x74a1", "Card SKU": "M3000100"},
 "system": {"Driver version": "6.7.0"}}"""


def put(folder: Path, name: str, script: str) -> None:
    """An executable of that name."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o700)


def runs_in(folder: Path) -> bool:
    """Whether a process has that folder as its own."""
    links = Path("/proc").glob("[0-9]*/cwd")
    with suppress(OSError):
        return any(os.readlink(link) == str(folder) for link in links)
    return True  # one ended meanwhile


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "h100-sxm"),
        ("NVIDIA H100 PCIe, 81559", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB, 40960", "a100-40g-sxm"),
        ("NVIDIA A100-SXM4-80GB, 81920", "a100-80g-sxm"),
        ("NVIDIA A100 80GB PCIe, 81920", "a100-80g-pcie"),
        ("NVIDIA H200, 143771", "h200"),
        ("NVIDIA L4, 23034", "l4"),
        ("NVIDIA L40S, 46068", "l40s"),
        ("Tesla T4, 15360", "t4"),
        ("Tesla V100-SXM2-16GB, 16384", "v100-16g"),
        ("Tesla V100-SXM2-32GB, 32768", "v100-32g"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx-4090"),
        ("HL-225, 98304 MiB", "gaudi2"),
        ("HL-325L, 131072 MiB", "gaudi3"),
        ("NVIDIA H100 NVL, 95830", ""),
        ("NVIDIA GeForce RTX 4090 Laptop GPU, 16376", ""),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb, 9856", ""),
        ("NVIDIA H100 80GB HBM3, [N/A]", ""),
        ("Some New Card, 81559", ""),
        ("NVIDIA-SMI has failed because it could not communicate with the driver", ""),
    ],
)
def test_a_product_is_a_row_of_the_table_or_no_card(line: str, expected: str) -> None:
    """With the memory that the row has: a part of a card, or another build of it, is not that card."""
    assert [card_of(each) for each in of_lines(line)] == [expected]


@pytest.mark.parametrize(
    ("series", "memory", "expected"),
    [
        ("AMD Instinct MI300X VF", "206141652992", "mi300x"),
        ("Instinct MI210", "68702699520", "mi210"),
        ("AMD INSTINCT MI250 (MCM) OAM AC MBA", "68702699520", ""),  # one of its two dies
        ("Radeon RX 7900 XTX", "25753026560", "rx-7900-xtx"),
        ("AMD Instinct MI300A", "137438953472", ""),
        ("AMD Instinct MI300X", "N/A", ""),
    ],
)
def test_products_of_amd(series: str, memory: str, expected: str) -> None:
    for key in ("Card Series", "Card series", "Device Name"):
        text = f'{{"card0": {{"{key}": "{series}", "Card Model": "0x74a1", "VRAM Total Memory (B)": "{memory}"}}}}'
        assert [card_of(each) for each in of_rocm(text)] == [expected]


@pytest.mark.parametrize(
    ("name", "mib", "expected"),
    [
        ("910B3", 65536, "ascend-910b"),
        ("910B2C", 65536, "ascend-910b"),
        ("910A", 32768, "ascend-910a"),
        ("910B4", 32768, ""),
        ("910B4", 65536, ""),
        ("910B", 32768, ""),
        ("Ascend910", 65536, ""),
        ("310P3", 21527, ""),
    ],
)
def test_products_of_ascend(name: str, mib: int, expected: str) -> None:
    """A process is no chip, and a bin with other figures than the row's is not that row."""
    assert [card_of(each) for each in of_npu_smi(NPU.format(name=name, mib=mib))] == [expected] * 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"card0": 7}', '{"card0": {}} x', "[" * 100_000, "||||", "| 0 | 0 | 0 |"]
)
def test_what_is_printed_in_another_form_is_no_card(text: str) -> None:
    """Of every tool."""
    for tool in TOOLS:
        assert not any(map(card_of, tool.read(text)))


@pytest.mark.parametrize(
    ("tool", "text", "expected"),
    [
        ("nvidia-smi", "NVIDIA L4, 23034\nNVIDIA L4, 23034", "l4"),
        ("rocm-smi", AMD, "mi300x"),
        ("npu-smi", NPU.format(name="910B3", mib=65536), "ascend-910b"),
        ("hl-smi", "HL-225, 98304 MiB", "gaudi2"),
    ],
)
async def test_the_card_by_the_tool_that_this_machine_has(
    tool: str, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are not there."""
    (tmp_path / "printed").write_text(text)
    put(tmp_path, tool, f"exec /bin/cat {tmp_path / 'printed'}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await card_here() == expected


async def test_several_kinds_of_cards_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one tool or of two: which of them the engine has is not known."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await card_here() == ""
    put(tmp_path, "nvidia-smi", "echo 'NVIDIA L4, 23034'; echo 'NVIDIA H200, 143771'")
    assert await card_here() == ""
    put(tmp_path, "nvidia-smi", "echo 'NVIDIA L4, 23034'")
    assert await card_here() == "l4"
    put(tmp_path, "hl-smi", "echo 'HL-225, 98304 MiB'")
    assert await card_here() == ""


async def test_a_tool_that_fails_or_hangs_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose child keeps its output open; nothing of it is left."""
    monkeypatch.setenv("PATH", str(tmp_path))
    put(tmp_path, "nvidia-smi", "echo 'NVIDIA L4, 23034'; exit 9")
    assert await card_here() == ""
    put(tmp_path, "nvidia-smi", f"cd {tmp_path}; /bin/sleep 600 & wait")
    assert await card_here((Tool(("nvidia-smi",), of_lines),), timeout_s=0.3) == ""
    await until(lambda: not runs_in(tmp_path))

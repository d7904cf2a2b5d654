"""Accelerators as their data sheets describe them: memory, bandwidth, compute, link, price.

Assumes: published figures, each with its source and a grade of trust (A measured or vendor
sheet checked, B one good source, C partly from memory, D a guess, E assumed since nothing is
known). Must not depend on: how well an engine uses them (that is `coefficients.py`) or what runs on them (`models.py`).

Conventions: compute is dense (no structured sparsity); ``link_bytes_per_s`` is one direction
per card, half the bidirectional figure on the sheet; ``memory_bytes`` is what the driver
reports, so cards whose inline ECC takes 1/16 (GDDR6: A10, L4, L20, L40S, T4) have less than
their name says. Prices are examples in USD per hour, to be replaced by an operator's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.core.errors import UnknownCard
from router.spelling import suggestion

GIB: Final = float(2**30)
_GDDR_ECC: Final = 15 / 16


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator. Bytes, seconds and FLOP/s throughout.

    ``flops_per_s`` holds dense peak by precision, only for precisions the card computes in
    natively, and ``fp16-accumulate`` where that is faster than FP16 with FP32 accumulation. ``family``
    (architecture) is the key of the efficiency tables; ``cards_per_node`` those that one domain of links joins.
    """

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    link: str
    link_bytes_per_s: float
    cards_per_node: int
    price_per_hour: float
    source: str
    confidence: str
    family: str = "unknown"

    def __post_init__(self) -> None:
        """Refuse a card that cannot be: ValueError names the field and what was expected."""
        for field in ("memory_bytes", "bandwidth_bytes_per_s", "link_bytes_per_s"):
            if not getattr(self, field) > 0:
                raise ValueError(f"card {self.name!r}: {field} must be above 0")
        if not self.flops_per_s or min(self.flops_per_s.values()) <= 0:
            raise ValueError(f"card {self.name!r}: flops_per_s needs a positive entry")


def _flops(
    fp16: float,
    fp8: float = 0,
    int8: float = 0,
    *,
    bf16: bool = True,
    fp4: float = 0,
    int4: float = 0,
    fast: float = 0,
) -> Mapping[str, float]:
    """Dense tera-operations a second by precision, zeros left out; *fast*: FP16 accumulated in FP16, which GeForce
    cards do twice as fast.
    """
    tera = {
        "fp16": fp16,
        "bf16": fp16 * bf16,
        "fp8": fp8,
        "int8": int8,
        "fp4": fp4,
        "int4": int4,
        "fp16-accumulate": fast,
    }
    return MappingProxyType({name: value * 1e12 for name, value in tera.items() if value})


def _card(
    name: str,
    gib: float,
    gb_s: float,
    flops: Mapping[str, float],
    link: str,
    link_gb_s: float,
    price: float,
    family: str,
    confidence: str,
    source: str,
    per_node: int = 8,
) -> Card:
    return Card(
        name,
        gib * GIB,
        gb_s * 1e9,
        flops,
        link,
        link_gb_s * 1e9,
        per_node,
        price,
        source,
        confidence,
        family,
    )


_AIC: Final = "ai-dynamo/aiconfigurator systems/*.yaml"
_ANALYSIS: Final = "cli99/llm-analysis gpu_configs"
_SHEET: Final = "vendor data sheet"

_ROWS: Final = (
    # name, GiB, GB/s, dense T/s, link, GB/s one way, USD/h, family, confidence, source
    _card("h20", 95.6, 4000, _flops(148, 296, 296), "nvlink", 450, 2.0, "h20", "B",
          "willitrunai.com h20-96gb; only about a third of its bandwidth shows in published runs"),
    _card("l20", 48 * _GDDR_ECC, 864, _flops(119.5, 239, 239), "pcie", 32, 0.9, "ada", "B",
          "taoguba.com.cn 5364790, besthub; fp8/int8 uncertain"),
    _card("l2", 24 * _GDDR_ECC, 300, _flops(96.5, 193, 193), "pcie", 32, 0.5, "ada", "C",
          "1cnz.cn; all but memory uncertain"),
    _card("a10", 24 * _GDDR_ECC, 600, _flops(125, 0, 250, int4=500), "pcie", 32, 0.75, "ampere", "A",
          f"{_ANALYSIS}/a10-pcie; 600 GB/s in the article"),
    _card("a10g", 24 * _GDDR_ECC, 600, _flops(70, 0, 140, int4=280), "pcie", 32, 1.006, "ampere", "A",
          f"{_ANALYSIS}/a10g-pcie-24gb; AWS list price"),
    _card("a30", 24, 933, _flops(165, 0, 330, int4=661), "pcie", 32, 0.9, "ampere", "A",
          f"{_AIC} a30; bridge between pairs not assumed"),
    _card("a40", 48 * _GDDR_ECC, 696, _flops(149.7, 0, 299.3), "pcie", 32, 0.8, "ampere", "A",
          f"{_ANALYSIS}, LLM-Viewer"),
    _card("a6000", 48 * _GDDR_ECC, 768, _flops(154.8, 0, 309.7), "pcie", 32, 0.8, "ampere", "A",
          f"{_ANALYSIS}/a6000-48gb, LLM-Viewer"),
    _card("a800", 80, 2039, _flops(312, 0, 624, int4=1248), "nvlink", 200, 1.3, "ampere", "A",
          "LLM-Viewer hardware_params; NVLink 400 GB/s both ways"),
    _card("h800", 79.6, 3350, _flops(989, 1979, 1979), "nvlink", 200, 2.9, "hopper", "B",
          "H100 with NVLink cut to 400 GB/s (taoguba.com.cn)"),
    _card("a100-40g-sxm", 39.6, 1555, _flops(312, 0, 624, int4=1248), "nvlink", 300, 1.1, "ampere", "A",
          f"{_ANALYSIS}/a100-sxm-40gb; FlagPerf measures 1328 GB/s and 251.5 TFLOP/s"),
    _card("a100-80g-sxm", 79.6, 2039, _flops(312, 0, 624, int4=1248), "nvlink", 300, 1.3, "ampere", "A",
          f"{_AIC} a100_sxm; price mercatus-ai.com 2026-05"),
    _card("a100-40g-pcie", 39.6, 1555, _flops(312, 0, 624, int4=1248), "pcie", 32, 1.0, "ampere", "B",
          _SHEET),
    _card("a100-80g-pcie", 79.6, 1935, _flops(312, 0, 624, int4=1248), "pcie", 32, 1.1, "ampere", "A",
          f"{_AIC} a100_pcie; bridge between pairs not assumed"),
    _card("h100-sxm", 79.6, 3350, _flops(989, 1979, 1979), "nvlink", 450, 2.99, "hopper", "A",
          f"{_AIC} h100_sxm; price dstackai/benchmarks 2024-11"),
    _card("h100-pcie", 79.6, 2000, _flops(756, 1513, 1513), "pcie", 64, 2.4, "hopper", "A",
          f"{_AIC} h100_pcie; bridge between pairs not assumed"),
    _card("h200", 140.4, 4800, _flops(989, 1979, 1979), "nvlink", 450, 4.0, "hopper", "A",
          f"{_AIC} h200_sxm; price mercatus-ai.com 2026-05"),
    _card("gh200", 95.6, 4000, _flops(989, 1979, 1979), "nvlink", 450, 3.2, "hopper", "B",
          f"{_SHEET}; the 96 GB HBM3 part", 4),
    _card("b200", 179.1, 7700, _flops(2250, 4500, 4500, fp4=9000), "nvlink", 900, 5.5, "blackwell", "A",
          f"{_AIC} b200_sxm; bandwidth 7.7 or 8.0 TB/s by listing"),
    _card("b300", 267, 7750, _flops(2250, 4500, fp4=13500), "nvlink", 900, 7.0, "blackwell", "B",
          f"{_AIC} b300_sxm"),
    _card("gb200", 184, 8000, _flops(2500, 5000, 5000, fp4=10000), "nvlink", 900, 7.0, "blackwell", "B",
          f"{_AIC} gb200; 72 cards in one NVLink domain", 72),
    _card("gb300", 270, 8000, _flops(2500, 5000, fp4=15000), "nvlink", 900, 8.0, "blackwell", "B",
          f"{_AIC} gb300; 72 cards in one NVLink domain", 72),
    _card("l4", 24 * _GDDR_ECC, 300, _flops(121, 242, 242, int4=484), "pcie", 32, 0.805, "ada", "A",
          f"{_AIC} l4; AWS list price"),
    _card("l40", 48 * _GDDR_ECC, 864, _flops(181, 362, 362, int4=724), "pcie", 32, 1.2, "ada", "A",
          "LLM-Viewer hardware_params"),
    _card("l40s", 48 * _GDDR_ECC, 864, _flops(362, 733, 733, int4=733), "pcie", 32, 1.861, "ada", "A",
          f"{_AIC} l40s; AWS list price"),
    _card("rtx-4090", 24, 1008, _flops(165.2, 330.3, 660.6, int4=1321, fast=330.3), "pcie", 32, 0.34,
          "geforce-ada", "B",
          f"{_SHEET} (fp16 with fp32 accumulate); price gputracker.dev 2026-03"),
    _card("rtx-3090", 24, 936, _flops(71, 0, 284, int4=568, fast=142), "pcie", 32, 0.25, "geforce-ampere", "B",
          f"{_SHEET} (fp16 with fp32 accumulate)"),
    _card("rtx-4080", 16, 717, _flops(97.5, 195, 390, fast=195), "pcie", 32, 0.3, "geforce-ada", "B", _SHEET),
    _card("rtx-3090-ti", 24, 1008, _flops(80, 0, 320, int4=640, fast=160), "pcie", 32, 0.3,
          "geforce-ampere", "C", _SHEET),
    _card("rtx-4070-ti", 12, 504, _flops(80.2, 160, 321, fast=160), "pcie", 32, 0.2, "geforce-ada", "C", _SHEET),
    _card("rtx-5090", 32, 1792, _flops(209.5, 419, 838, fp4=1676, fast=419), "pcie", 64, 0.5, "geforce-blackwell", "B",
          "NVIDIA RTX Blackwell architecture whitepaper (fp16 with fp32 accumulate)"),
    _card("rtx-5080", 16, 960, _flops(112.6, 225, 450, fp4=900, fast=225), "pcie", 64, 0.35, "geforce-blackwell", "B",
          "NVIDIA RTX Blackwell architecture whitepaper (fp16 with fp32 accumulate)"),
    _card("rtx-5000-ada", 32, 576, _flops(130.5, 261, 261), "pcie", 32, 0.7, "ada", "C", _SHEET),
    _card("rtx-4000-ada", 20, 360, _flops(53.4, 107, 107), "pcie", 32, 0.4, "ada", "C", _SHEET),
    _card("rtx-6000-ada", 48 * _GDDR_ECC, 960, _flops(182, 364, 364), "pcie", 32, 1.0, "ada", "B", _SHEET),
    _card("rtx-pro-6000", 95.6, 1792, _flops(467.8, 935.6, 935.6, fp4=1870), "pcie", 64, 1.8,
          "blackwell", "A", f"{_AIC} rtx_pro_6000_server"),
    _card("v100-16g", 16, 900, _flops(125, 0, 62, bf16=False), "nvlink", 150, 2.0, "volta", "A",
          f"{_ANALYSIS}/v100-sxm; int8 by DP4A only"),
    _card("v100-32g", 32, 900, _flops(125, 0, 62, bf16=False), "nvlink", 150, 3.06, "volta", "A",
          f"{_ANALYSIS}/v100-sxm-32gb; int8 by DP4A only; AWS list price"),
    _card("v100-32g-pcie", 32, 900, _flops(112, 0, 56, bf16=False), "pcie", 16, 2.0, "volta", "A",
          f"{_ANALYSIS}/v100-pcie-32gb"),
    _card("t4", 16 * _GDDR_ECC, 320, _flops(65, 0, 130, bf16=False, int4=260), "pcie", 16, 0.526,
          "turing", "A", f"{_SHEET}; AWS list price"),
    _card("mi300x", 191.7, 5300, _flops(1307, 2615, 2615), "infinity-fabric", 448, 4.5, "cdna", "A",
          f"{_SHEET}; price dstackai/benchmarks 2024-11"),
    _card("mi325x", 255.7, 6000, _flops(1307, 2615, 2615), "infinity-fabric", 448, 5.0, "cdna", "A",
          _SHEET),
    _card("mi250", 128, 3277, _flops(362, 0, 362), "infinity-fabric", 200, 2.0, "cdna", "A",
          f"{_ANALYSIS}/mi250-128gb; two dies", 4),
    _card("mi355x", 288, 8000, _flops(2300, 4600, 4600, fp4=9200), "infinity-fabric", 538, 6.0, "cdna", "B", _SHEET),
    _card("mi210", 64, 1638, _flops(181, 0, 181), "infinity-fabric", 100, 1.2, "cdna", "B", _SHEET, 4),
    _card("rx-7900-xtx", 24, 960, _flops(122.8, 0, 122.8), "pcie", 32, 0.3, "rdna", "B", _SHEET),
    _card("gaudi2", 96, 2450, _flops(432, 865), "roce", 300, 1.6, "gaudi", "B", _SHEET),
    _card("gaudi3", 128, 3700, _flops(1835, 1835), "roce", 600, 2.5, "gaudi", "B", _SHEET),
    _card("max-1100", 48, 1229, _flops(352, 0, 704), "pcie", 64, 0.8, "ponte-vecchio", "C", _SHEET, 4),
    _card("arc-a770", 16, 560, _flops(138, 0, 275), "pcie", 32, 0.15, "xe", "C", _SHEET),
    _card("arc-b580", 12, 456, _flops(96, 0, 233), "pcie", 16, 0.15, "xe", "C", _SHEET),
    _card("max-1550", 128, 3277, _flops(839, 0, 1678), "xe-link", 265, 2.0, "ponte-vecchio", "C", _SHEET),
    _card("ascend-910a", 32, 1200, _flops(256, 0, 512), "hccs", 30, 1.0, "ascend", "C",
          "bbs.huaweicloud.com/blogs/468907 (256 TFLOPS, 310 W); bandwidth and link from memory"),
    _card("ascend-910b", 64, 1600, _flops(320, 0, 640), "hccs", 196, 1.5, "ascend", "C",
          "FlagPerf Atlas 800T A2 (313 TFLOP/s measured); bins span 280 to 414; bandwidth uncertain"),
    _card("ascend-910c", 128, 3200, _flops(780, 0, 1560), "hccs", 392, 3.0, "ascend", "C",
          "techpowerup.com/335749, besthub.dev; two dies, use half per device"),
    _card("kunlun-2", 32, 512, _flops(128, 0, 256), "xpu-link", 100, 0.8, "kunlun", "C",
          "FlagPerf kunlunxin (8 x R300: 1 POPS fp16, 256 GB, 200 GB/s); bandwidth besthub"),
    _card("kunlun-2-pcie", 32, 512, _flops(128, 0, 256), "pcie", 32, 0.7, "kunlun", "C",
          "besthub Kunlun XPU-R (R200)"),
    _card("kunlun-p800", 64, 1600, _flops(345, 0, 690), "xpu-link", 100, 1.5, "kunlun", "D",
          "no sheet found: bandwidth and compute assumed near the Ascend 910B"),
    _card("cpu", 16, 40, _flops(0.5, 0, 1.0), "shared-memory", 10, 0.1, "cpu", "D",
          "a few server cores with two memory channels: to be learnt, not believed", 1),
)  # fmt: skip

CARDS: Final[Mapping[str, Card]] = MappingProxyType({row.name: row for row in _ROWS})

_ALIASES: Final[Mapping[str, str]] = MappingProxyType({
    "a100": "a100-80g-sxm", "a100-80": "a100-80g-sxm", "a100-80g": "a100-80g-sxm",
    "a100-80gb": "a100-80g-sxm", "a100-sxm": "a100-80g-sxm", "a100-sxm-80gb": "a100-80g-sxm",
    "a100-40": "a100-40g-sxm", "a100-40g": "a100-40g-sxm", "a100-40gb": "a100-40g-sxm",
    "a100-sxm-40gb": "a100-40g-sxm", "a100-pcie": "a100-80g-pcie", "a100-pcie-80gb": "a100-80g-pcie",
    "a100-80gb-pcie": "a100-80g-pcie", "a100-pcie-40gb": "a100-40g-pcie",
    "a800-sxm": "a800", "a800-sxm-80gb": "a800", "a800-80g": "a800",
    "h100": "h100-sxm", "h100-80g": "h100-sxm", "h100-80gb": "h100-sxm",
    "h100-sxm-80gb": "h100-sxm", "h100-80g-sxm": "h100-sxm", "h100-sxm5-80gb": "h100-sxm",
    "h100-pcie-80gb": "h100-pcie", "h100-80g-pcie": "h100-pcie",
    "h800-sxm": "h800", "h800-sxm-80gb": "h800", "h20-96gb": "h20", "h20-96g": "h20",
    "h200-sxm": "h200", "h200-sxm-141gb": "h200", "h200-141gb": "h200",
    "gh200-96gb": "gh200", "b200-sxm": "b200", "b200-180gb": "b200", "b300-sxm": "b300",
    "4090": "rtx-4090", "rtx4090": "rtx-4090", "3090": "rtx-3090", "rtx3090": "rtx-3090",
    "4080": "rtx-4080", "rtx4080": "rtx-4080", "3090ti": "rtx-3090-ti", "rtx-3090ti": "rtx-3090-ti",
    "5090": "rtx-5090", "rtx5090": "rtx-5090", "5080": "rtx-5080", "4070ti": "rtx-4070-ti", "rtx-4070ti": "rtx-4070-ti",
    "7900xtx": "rx-7900-xtx", "rx-7900xtx": "rx-7900-xtx", "mi350x": "mi355x", "a770": "arc-a770", "b580": "arc-b580",
    "gaudi-2": "gaudi2", "gaudi-3": "gaudi3", "gb200-nvl72": "gb200", "gb300-nvl72": "gb300", "rtx-a6000": "a6000",
    "v100": "v100-32g", "v100-sxm2-32gb": "v100-32g", "v100-sxm2-16gb": "v100-16g",
    "v100-32gb": "v100-32g", "v100-16gb": "v100-16g", "v100-pcie": "v100-32g-pcie",
    "v100-pcie-32gb": "v100-32g-pcie",
    "910": "ascend-910b", "ascend": "ascend-910b", "ascend-910": "ascend-910b", "910a": "ascend-910a",
    "910b": "ascend-910b", "910c": "ascend-910c",
    "kunlun": "kunlun-2", "kunlun2": "kunlun-2", "kunlun-r300": "kunlun-2", "kunlun-rg800": "kunlun-2",
    "kunlun-r200": "kunlun-2-pcie", "r200": "kunlun-2-pcie", "r300": "kunlun-2", "p800": "kunlun-p800",
    "mi300": "mi300x", "max1550": "max-1550", "max-1550": "max-1550",
})  # fmt: skip


def _spelled(name: str) -> str:
    """Lower case with dashes, a trailing remark in brackets or a question mark dropped."""
    plain = name.split("(", maxsplit=1)[0].strip().rstrip("?").lower()
    return plain.replace("nvidia ", "").replace("_", "-").replace(" ", "-")


def card(name: str) -> Card:
    """The card of that name or alias, in any case; UnknownCard names the nearest otherwise."""
    key = _spelled(name)
    found = CARDS.get(_ALIASES.get(key, key))
    if found is None:
        raise UnknownCard(f"no card named {name!r}; {suggestion(key, [*CARDS, *_ALIASES], count=4, cutoff=0.3)}")
    return found

"""The style of the page, light and dark. Eight colours that colour-blind readers can tell apart
(Okabe and Ito 2008).
"""

from typing import Final

STYLE: Final = """
:root{--paper:#fff;--ink:#1c2024;--soft:#60646c;--line:#e3e5e8;--best:#eaf4ee;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#cc79a7;--s4:#e69f00;--s5:#56b4e9;--s6:#7f6bd0;--s7:#8c8c8c}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e6e8ea;--soft:#9aa0a8;--line:#2c3136;--best:#1d3327;
--s0:#4da3dd;--s1:#f2853f;--s2:#3cc79b;--s3:#e3a1c6;--s4:#f0bb4a;--s5:#8accf2;--s6:#a898ee;--s7:#a8a8a8}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 20px 60px;max-width:1460px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:30px 0 8px}
header p{margin:2px 0;color:var(--soft);max-width:100ch}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--line)}
td{padding-left:14px}th:first-child{text-align:left;font-weight:400;color:var(--soft)}
thead th{font-weight:600}td.best{background:var(--best);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:18px 24px}
figure{margin:0}figcaption{font-weight:600;font-size:14px;margin-bottom:2px}
svg{width:100%;height:auto;display:block}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
.tick,.label,.referencelabel{font-size:11px;fill:var(--soft)}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.area{opacity:.35;stroke:none}.dots{opacity:.45}
.reference{stroke:var(--ink);stroke-dasharray:4 3}.referencelabel{fill:var(--ink)}
.line.muted{stroke:var(--soft);stroke-width:1}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}.line.s3{stroke:var(--s3)}
.line.s4{stroke:var(--s4)}.line.s5{stroke:var(--s5)}.line.s6{stroke:var(--s6)}.line.s7{stroke:var(--s7)}
.area.s0,.dots.s0{fill:var(--s0)}.area.s1,.dots.s1{fill:var(--s1)}.area.s2,.dots.s2{fill:var(--s2)}
.area.s3,.dots.s3{fill:var(--s3)}.area.s4,.dots.s4{fill:var(--s4)}.area.s5,.dots.s5{fill:var(--s5)}
.area.s6,.dots.s6{fill:var(--s6)}.area.s7,.dots.s7{fill:var(--s7)}
.points.s0{fill:var(--s0)}.points.s1{fill:var(--s1)}.points.s2{fill:var(--s2)}.points.s3{fill:var(--s3)}
.points.s4{fill:var(--s4)}.points.s5{fill:var(--s5)}.points.s6{fill:var(--s6)}.points.s7{fill:var(--s7)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:14px 0 0}
.legend i{display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle;border-radius:2px}
i.s0{background:var(--s0)}i.s1{background:var(--s1)}i.s2{background:var(--s2)}i.s3{background:var(--s3)}
i.s4{background:var(--s4)}i.s5{background:var(--s5)}i.s6{background:var(--s6)}i.s7{background:var(--s7)}
td.text,th.text{text-align:left;padding-left:14px}tr.best td,tr.best th{background:var(--best);font-weight:600}
details{margin-top:22px;border-top:1px solid var(--line);padding-top:10px}
summary{font-weight:600;cursor:pointer}.events{color:var(--soft)}
@media print{details{display:block}}
"""

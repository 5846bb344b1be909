#!/usr/bin/env python3
"""results.svg from results.json: four questions, a bar for each proxy, short is good."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from peers import OURS, PEERS
from report import Spread, by_round

WIDTH = 880
MARGIN = 24
GUTTER = 40
PANEL = (WIDTH - 2 * MARGIN - GUTTER) // 2
NAMES = 106
VALUES = 62
BAR = 16
STEP = 24
TITLE = 46
FOOT = 44

# The page behind it may be light or dark: the colours follow what its reader prefers.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f; }
.title { font-size: 14px; font-weight: 600; }
.quiet { fill: #57606a; }
.small { font-size: 11px; }
.ours { font-weight: 600; }
.bar { fill: #a8b3bf; }
.bar.ours { fill: #2f6fde; }
.spread { stroke: #24292f; stroke-opacity: 0.55; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .quiet { fill: #9aa5b1; }
  .bar { fill: #5b6673; }
  .bar.ours { fill: #5b96f7; }
  .spread { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    # Infinite for a proxy that could not keep up.
    bars: dict[str, Spread]


def panels(results: dict[str, Any]) -> list[Panel]:
    def of_row(row: str, figure: str, scale: float = 1.0) -> dict[str, Spread]:
        return {
            peer: Spread.of([value * scale for value in rounds.values()])
            for peer in PEERS
            if (rounds := by_round(results, row, peer, figure))
        }

    idle = results.get("extras", {}).get("idle", {})
    light = results["paces"].get("light", 0)
    made = [
        Panel("CPU a request, small GET", "µs", of_row("get", "cpu_us")),
        Panel("CPU of refusing a request with 429", "µs", of_row("limited", "cpu_us")),
        Panel(f"p99 at {light:,} requests a second", "ms", of_row("light", "p99_us", 1e-3)),
        Panel(
            "memory of an idle keepalive connection",
            "KiB",
            {peer: Spread.of([idle[peer]["kib_each"]]) for peer in PEERS if peer in idle},
        ),
    ]
    return [panel for panel in made if panel.bars]


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def draw_panel(panel: Panel, x: float, y: float) -> list[str]:
    parts = [text(x, y + 16, panel.title, "title"), text(x + PANEL, y + 16, panel.unit, "quiet", "end")]
    ends = [end for bar in panel.bars.values() for end in (bar.median, bar.high) if end < math.inf]
    longest = max(ends, default=1.0)
    room = PANEL - NAMES - VALUES
    top = y + TITLE - 14
    for number, (peer, bar) in enumerate(panel.bars.items()):
        line = top + number * STEP
        kind = "ours" if peer == OURS else ""
        parts.append(text(x + NAMES - 8, line + 13, PEERS[peer].title, kind, "end"))
        start = x + NAMES
        if bar.median == math.inf:
            parts.append(text(start + 2, line + 13, "can't keep up", "quiet"))
            continue
        width = bar.median / longest * room
        parts.append(
            f'<rect x="{start:.1f}" y="{line:.1f}" width="{max(width, 1):.1f}" height="{BAR}" rx="2" '
            f'class="bar {kind}"/>'
        )
        low, high = start + bar.low / longest * room, start + min(bar.high / longest, 1.0) * room
        if high - low >= 1:
            middle = line + BAR / 2
            parts.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" class="spread"/>')
        digits = 0 if bar.median >= 100 else 1 if bar.median >= 10 else 2
        parts.append(text(max(start + width, high) + 6, line + 13, f"{bar.median:.{digits}f}", kind))
    return parts


def draw(results: dict[str, Any]) -> str:
    drawn = panels(results)
    parts: list[str] = []
    y: float = MARGIN
    for left in range(0, len(drawn), 2):
        pair = drawn[left : left + 2]
        for column, panel in enumerate(pair):
            parts += draw_panel(panel, MARGIN + column * (PANEL + GUTTER), y)
        y += TITLE + STEP * max(len(panel.bars) for panel in pair)
    foot = [
        f"Short is good. Median of {results['rounds']} rounds; half of them were where the line is.",
        "One core each, all with JSON access log, a limit for each client and metrics; bare Pingora with none of it. "
        f"{results['date'][:10]}, {results['machine']['cpu']}.",
    ]
    for number, words in enumerate(foot):
        parts.append(text(MARGIN, y + 14 + 16 * number, words, "quiet small"))
    height = y + FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="What a request costs in GopherProxy and in others">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    (here / "results.svg").write_text(draw(json.loads((here / "results.json").read_text())))
    sys.exit(0)

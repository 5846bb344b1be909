"""What is told of a run is what was measured in it: of the run that is kept here, and of small ones made up to be told wrong.

`make check-bench` runs this; it needs no peer and takes no load.
"""

from __future__ import annotations

import json
import math
import unittest
from pathlib import Path

import plot
import report

HERE = Path(__file__).resolve().parent
GOAL = report.Goal("small GET, to nginx", 1.6, 1.0, report.cpu_to("nginx"))


def run(**cpu_us: list[float]) -> report.Results:
    """A run of the row `get` alone, with these figures round by round. It has no latencies, as if nobody could keep up."""
    return {
        "measurements": [
            {"row": "get", "peer": peer, "round": number, "cpu_us": figure, "p50_us": None, "p99_us": None}
            for peer, figures in cpu_us.items()
            for number, figure in enumerate(figures)
        ],
        "paces": {},
        "extras": {},
    }


class WhatIsKept(unittest.TestCase):
    """The tables and the plot are not written by hand."""

    def setUp(self) -> None:
        self.results = json.loads((HERE / "results.json").read_text())

    def test_the_tables_are_those_of_the_measurements(self) -> None:
        words = (HERE / "RESULTS.md").read_text()
        self.assertEqual(words, report.rewritten(words, self.results))

    def test_the_plot_is_that_of_the_measurements(self) -> None:
        self.assertEqual((HERE / "results.svg").read_text(), plot.draw(self.results))

    def test_all_that_was_promised_was_measured(self) -> None:
        for goal in report.GOALS:
            self.assertIsNotNone(goal.figure(self.results), goal.title)


class WhatIsSaidOfIt(unittest.TestCase):
    def verdict(self, results: report.Results) -> str:
        return GOAL.line(results)[-1]

    def test_a_figure_above_what_it_must_reach_is_missed(self) -> None:
        self.assertEqual(self.verdict(run(gopherproxy=[17.0], nginx=[10.0])), "missed")
        self.assertEqual(self.verdict(run(gopherproxy=[16.0], nginx=[10.0])), "kept")
        self.assertEqual(self.verdict(run(gopherproxy=[10.0], nginx=[10.0])), "aim reached")
        self.assertEqual(self.verdict(run(gopherproxy=[10.0])), "not measured")

    def test_the_median_of_the_rounds_decides_and_half_of_them_are_told(self) -> None:
        results = run(gopherproxy=[9.0, 17.0, 17.0, 17.0, 90.0], nginx=[10.0] * 5)
        self.assertEqual(GOAL.line(results)[1:], ["1.70 (1.70-1.70)", "1.6", "1", "missed"])

    def test_only_figures_of_one_round_are_compared(self) -> None:
        # Everything took ten times as long in the second round.
        results = run(gopherproxy=[10.0, 100.0, 10.0], nginx=[10.0, 100.0])
        self.assertEqual(GOAL.line(results)[1], "1.00 (1.00-1.00)")

    def test_who_can_not_keep_up_is_as_late_as_can_be(self) -> None:
        late = report.ratio(run(gopherproxy=[1.0], nginx=[1.0]), "p99_us", ("get", "gopherproxy"), ("get", "nginx"))
        self.assertIsNone(late, "to be slower than what could not keep up says nothing")
        results = run(gopherproxy=[1.0] * 3, nginx=[1.0] * 3)
        for measured in results["measurements"]:
            if measured["peer"] == "nginx" or measured["round"] == 0:
                measured |= {"p50_us": 1.0, "p99_us": 2.0}
        late = report.ratio(results, "p99_us", ("get", "gopherproxy"), ("get", "nginx"))
        self.assertEqual(late.median, math.inf)
        self.assertIn("| GopherProxy | can't keep up |\n", report.latencies(results))
        self.assertIn("| nginx | 1 / 2 |\n", report.latencies(results))

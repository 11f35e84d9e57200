# SPDX-License-Identifier: Apache-2.0
"""Results of run.py or gpu.py as tables, ratios and a picture: python benchmarks/report.py RESULTS.json"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import chart
import cpu_report
import gpu_report
import results

START, END = "<!-- results: written by report.py -->", "<!-- end of results -->"


def report(document: dict[str, Any], markdown: bool = True) -> str:
    """The whole report of a results file; text tables are for results of a GPU."""
    if "ceilings" in document:
        return gpu_report.report(document, markdown)
    return cpu_report.report(cpu_report.Results(document))


def replaced(page: str, text: str) -> str:
    """The page with other results."""
    before, after = page.split(START)[0], page.split(END)[1]
    return f"{before}{START}\n\n{text}\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument(
        "--chart", type=pathlib.Path, metavar="PNG", help="draw this picture; needs matplotlib"
    )
    parser.add_argument("--docs", type=pathlib.Path, metavar="MD", help="replace the results in this page")
    parser.add_argument("--text", action="store_true", help="of a GPU: text instead of Markdown")
    options = parser.parse_args(arguments)
    document = results.read(options.results)
    text = report(document, not options.text)
    if options.docs is None:
        print(text, end="")
    else:
        options.docs.write_text(replaced(options.docs.read_text(), text))
    if options.chart is not None:
        chart.draw(cpu_report.Results(document), options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

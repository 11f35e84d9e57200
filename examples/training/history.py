# SPDX-License-Identifier: Apache-2.0
"""The learning curve: a line of JSON for every step, and one for every evaluation."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

Record = dict[str, float]


class History:
    """Records in a file; those after a step from which a run goes on are dropped, as it makes them again.

    Floats are written so that they come back bit by bit.
    """

    def __init__(self, file: pathlib.Path, step: int) -> None:
        self.file = file
        self.records = [record for record in read(file) if record["step"] <= step]
        file.write_text("".join(map(_line, self.records)))

    def add(self, records: Iterable[Record]) -> None:
        """Appends them to the file, which has them when this returns."""
        records = list(records)
        self.records += records
        with self.file.open("a") as file:
            file.writelines(map(_line, records))

    @property
    def steps(self) -> list[Record]:
        """Of training: step, loss, accuracy, rate."""
        return [record for record in self.records if "loss" in record]

    @property
    def evaluations(self) -> list[Record]:
        """Of the held-out images: step, epoch, held_out_loss, held_out_accuracy."""
        return [record for record in self.records if "epoch" in record]


def read(file: pathlib.Path) -> list[Record]:
    """Records of a file, none if there is none; without a last line that was cut off when its writer died."""
    text = file.read_text() if file.exists() else ""
    complete, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"

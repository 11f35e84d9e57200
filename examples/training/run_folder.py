# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, which goes on only with the settings it was begun with."""

import json
import pathlib
import shutil
from typing import Any


def prepare(folder: pathlib.Path, settings: dict[str, Any], *, restart: bool) -> None:
    """Makes the folder, with the settings in `run.json`.

    restart: what an earlier run has left there is removed.

    Raises:
      ValueError: it has a run with other settings; all that differ are named.
    """
    file = folder / "run.json"
    if restart and file.exists():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for old in (file, folder / "history.jsonl"):
            old.unlink(missing_ok=True)
    text = json.dumps(settings, indent=1)
    if file.exists():
        old, new = json.loads(file.read_text()), json.loads(text)
        differing = [
            f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in new if old.get(key) != new[key]
        ]
        if differing:
            raise ValueError(
                f"{folder} has a run with other settings: {'; '.join(differing)}. Give another --output, or "
                f"--restart to begin anew"
            )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)

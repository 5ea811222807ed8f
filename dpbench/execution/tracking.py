"""Write `steps.jsonl` and its mirror in Weights & Biases. Only the file is ever read; the mirror is for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from dpbench.errors import DpbenchError
from dpbench.files import write_error
from dpbench.spec.run_config import Tracking


class StepLog:
    """A log with one line per step, a JSON object, which is flushed as it is written.

    Args:
        path: truncated on opening: a run that starts again starts its log again.
        mirror: `off`, `offline` or `online`; an error of the mirror becomes a warning of the run and never ends it.
    """

    def __init__(self, path: Path, mirror: Tracking = "off", run: str = "", config: dict[str, Any] | None = None) -> None:
        self.warnings: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise write_error(path, error) from error
        self._path = path
        self._wandb = self._open_mirror(mirror, run, config or {})

    def _open_mirror(self, mirror: Tracking, run: str, config: dict[str, Any]) -> Any:
        if mirror == "off":
            return None
        if mirror not in get_args(Tracking):
            raise DpbenchError(f"unknown tracking mode {mirror!r}", f"one of {', '.join(get_args(Tracking))}")
        try:
            import wandb

            return wandb.init(
                project="dpbench",
                id=run,
                name=run,
                config=config,
                mode=mirror,
                dir=str(self._path.parent),
                resume="never" if mirror == "offline" else None,
            )
        except Exception as error:  # a mirror must not stop a run
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        self.warnings.append(f"the Weights & Biases mirror stopped: {type(error).__name__}: {error}")
        self._wandb = None

    def write(self, **values: Any) -> None:
        """Append one line.

        Raises:
            DpbenchError: the disk is full, or the file cannot be written for another reason.
        """
        try:
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error
        if self._wandb is not None:
            try:
                self._wandb.log({k: v for k, v in values.items() if v is not None})
            except Exception as error:
                self._warn(error)

    def close(self, summary: dict[str, Any] | None = None) -> None:
        """Close the file, and the mirror with the run's metrics as its summary.

        Raises:
            DpbenchError: the last lines cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._path, error) from error
        if self._wandb is not None:
            try:
                self._wandb.summary.update(summary or {})
                self._wandb.finish()
            except Exception as error:
                self._warn(error)
            self._wandb = None

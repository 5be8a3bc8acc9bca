"""JSON lines that grow while work goes on, so that interrupted work goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.report import json_line, write_json
from eval.run import EvaluationError
from eval.trace import Trace


class Log:
    """A file that rows are appended to; half a last line, left by an interruption, is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """EvaluationError where a line is no JSON object."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(complete))
        try:
            return [dict(json.loads(line)) for line in complete.decode("utf-8").split("\n") if line]
        except (ValueError, TypeError) as error:
            raise EvaluationError(f"{self.path}: not what an evaluation wrote: {error}") from error

    def append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(row))


class Run:
    """What one system at one setting made of each utterance: `run.json` (the setting) and `traces.jsonl`.

    Args:
        resume: go on with the run that `folder` holds; otherwise that run is forgotten.

    Raises:
        EvaluationError: `folder` holds a run with other settings, or something that is no run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        self._log = Log(folder / "traces.jsonl")
        held = folder / "run.json"
        self.traces: dict[str, Trace] = {}
        if resume and held.is_file():
            self._check_same(json.loads(held.read_text(encoding="utf-8")))
            self.traces = self._read()
        else:
            self._log.path.unlink(missing_ok=True)
            write_json(held, settings)

    def add(self, trace: Trace) -> None:
        self._log.append(trace.as_json())
        self.traces[trace.utterance_id] = trace

    def _check_same(self, held: Mapping[str, Any]) -> None:
        different = [key for key in {**self.settings, **held} if held.get(key) != self.settings.get(key)]
        if different:
            values = ", ".join(
                f"{key} {held.get(key)!r} and not {self.settings.get(key)!r}" for key in different
            )
            raise EvaluationError(
                f"{self.folder} holds a run with {values}: choose another --out, or start afresh with --no-resume"
            )

    def _read(self) -> dict[str, Trace]:
        try:
            traces = [Trace.from_json(row) for row in self._log.rows()]
        except (KeyError, TypeError) as error:
            raise EvaluationError(f"{self._log.path}: not the traces of an evaluation: {error}") from error
        return {trace.utterance_id: trace for trace in traces}

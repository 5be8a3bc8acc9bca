"""JSON lines that grow while work goes on, so that interrupted work goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.report import json_line, write_json
from eval.run import EvaluationError
from eval.trace import Trace


def fingerprint(audio: Path) -> str:
    """Tells one recording from another that has taken its name."""
    with audio.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


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
        audio: the fingerprint of each utterance's audio, by id; a trace of other audio is forgotten.
        resume: go on with the run that `folder` holds; otherwise that run is forgotten.

    Raises:
        EvaluationError: `folder` holds a run with other settings, or something that is no run.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], audio: Mapping[str, str], *, resume: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        self.grew = False  # whether anything was recognised anew
        self._log = Log(folder / "traces.jsonl")
        self._audio = audio
        held = folder / "run.json"
        self.traces: dict[str, Trace] = {}
        self._machines: dict[str, Mapping[str, Any]] = {}  # that each of them was measured on
        if resume and held.is_file():
            self._check_same(held)
            self._read()
        else:
            self._log.path.unlink(missing_ok=True)
            write_json(held, settings)

    def add(self, trace: Trace, machine: Mapping[str, Any]) -> None:
        """Writes down what was made of an utterance, and on what."""
        key = trace.utterance_id
        self._log.append(trace.as_json() | {"audio": self._audio[key], "machine": machine})
        self.traces[key], self._machines[key] = trace, machine
        self.grew = True

    @property
    def machine(self) -> dict[str, Any]:
        """What it was measured on; where it went on in another way, the larger numbers and all of the names."""
        values: dict[str, list[Any]] = {}
        for machine in self._machines.values():
            for key, value in machine.items():
                values.setdefault(key, []).append(value)
        return {key: _both(dict.fromkeys(some)) for key, some in values.items()}

    def _check_same(self, path: Path) -> None:
        try:
            held = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise EvaluationError(
                f"{path}: not what an evaluation wrote: choose another --out, or start afresh with --no-resume"
            ) from error
        different = [key for key in {**self.settings, **held} if held.get(key) != self.settings.get(key)]
        if different:
            values = ", ".join(
                f"{key} {held.get(key)!r} and not {self.settings.get(key)!r}" for key in different
            )
            raise EvaluationError(
                f"{self.folder} holds a run with {values}: choose another --out, or start afresh with --no-resume"
            )

    def _read(self) -> None:
        try:
            for row in self._log.rows():
                if row["audio"] == self._audio.get(row["id"]):
                    self.traces[row["id"]], self._machines[row["id"]] = Trace.from_json(row), row["machine"]
        except (KeyError, TypeError) as error:
            raise EvaluationError(
                f"{self._log.path}: not the traces of an evaluation ({error}): "
                "choose another --out, or start afresh with --no-resume"
            ) from error


def _both(values: Iterable[Any]) -> Any:
    some = list(values)
    return max(some) if all(isinstance(value, int) for value in some) else " and ".join(map(str, some))

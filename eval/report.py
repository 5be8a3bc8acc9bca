"""What is written of a run: `report.json` (stable keys), `utterances.jsonl`, and what they were measured on."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from eval.datasets import Utterance
from eval.metrics import Measured, as_row, measure, summarize, without_absent
from eval.trace import Trace

_PACKAGES = ("asr-stream", "torch", "numpy", "openai-whisper", "jiwer")
KEPT = ("timestamps", "calibration")  # of report.json: other measurements of the same run add them


@dataclass(frozen=True)
class Report:
    """The numbers of a run of one system at one setting."""

    summary: dict[str, Any]  # report.json
    measured: list[Measured]

    @property
    def utterances(self) -> list[dict[str, Any]]:
        """The lines of utterances.jsonl."""
        return [as_row(one) for one in self.measured]

    def write(self, folder: Path) -> None:
        """Puts both files into `folder`, each whole or not at all."""
        write_atomically(folder / "utterances.jsonl", "".join(json_line(row) for row in self.utterances))
        write_json(folder / "report.json", self.summary)


def report(
    settings: Mapping[str, Any],
    recognised: Sequence[tuple[Utterance, Trace]],
    machine: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Report:
    """The report on utterances and what happened to each. `settings` go in front as they are, `extra` behind."""
    second_pass = settings.get("final_pass") != "none"
    measured = [measure(utterance, trace, second_pass=second_pass) for utterance, trace in recognised]
    summary = {
        **settings,
        **summarize(measured),
        **(extra or {}),
        "machine": dict(machine),
        "versions": _versions(),
    }
    return Report(without_absent(summary), measured)


def kept_entries(folder: Path) -> dict[str, Any]:
    """What other measurements have added to the report.json of this folder."""
    try:
        held = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: held[key] for key in KEPT if isinstance(held, dict) and key in held}


def value_at(summary: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The entry of a report.json under these keys, one within the other; None where it is absent."""
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """What the compute times depend on."""
    return {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "device": device}


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path`, which a reader finds either as it was or complete."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(draft, path)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

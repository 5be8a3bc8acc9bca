"""What a soak (server/soak.py) found: words lost and added, slots, memory; and whether that is good enough."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from server.bench import save_figure, unheard
from server.dialects import plain

WARM_UP = 0.25  # of the soak: what a server takes once, it has taken by then
AN_END = 0.1  # of the rest: memory at its beginning and at its end are medians over so much
MOST_GROWTH = 0.02
HEADROOM = 1.1  # of the plot


@dataclass(frozen=True)
class Difference:
    """A clip that was not heard as in quiet; `clip` is empty for silence in which words were heard."""

    clip: str
    quiet: str
    heard: str
    lost: int
    added: int  # doubled ones among them
    otherwise: int  # worded otherwise
    story: tuple[str, ...] = ()  # of its conversation, in order: what was said, suffered and heard


def compare(clip: str, quiet: str, heard: str) -> Difference | None:
    """None where the words are the same, whatever their capitals and punctuation.

    One word that becomes two, or two that become one, are worded otherwise.
    """
    before, after = (list(map(plain, text.split())) for text in (quiet, heard))
    lost = added = otherwise = 0
    for tag, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = i_end - i, j_end - j
        if tag == "equal" or "".join(before[i:i_end]) == "".join(after[j:j_end]):
            continue
        both = min(gone, come)
        spare = 1 if both else 0
        otherwise += max(both, min(gone, come + spare), min(come, gone + spare))
        lost += max(0, gone - come - spare)
        added += max(0, come - gone - spare)
    return Difference(clip, quiet, heard, lost, added, otherwise) if lost or added or otherwise else None


@dataclass
class SoakReport:
    """What was done to a server, and what it did; grows while the soak runs."""

    streams: int
    seed: int
    planned_s: float
    seconds: float = 0.0
    visits: int = 0  # that were begun
    closed: int = 0  # of them, to the end
    left: int = 0  # of them, without a word
    incidents: Counter[str] = field(default_factory=Counter)
    reconnections: int = 0
    refused: int = 0  # comings that found no slot free, and waited
    audio_s: float = 0.0
    clips: int = 0  # compared
    words: int = 0  # of them
    differences: list[Difference] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)  # of visits that could not go on
    slots_free: int | None = None  # when all were gone; None: the server did not say
    memory_mb: list[tuple[float, float]] = field(default_factory=list)  # (s; resident then)
    second_passes: dict[str, int] = field(default_factory=dict)  # of all finals: heard, skipped, failed

    @property
    def lost(self) -> int:
        return sum(each.lost for each in self.differences)

    @property
    def added(self) -> int:
        return sum(each.added for each in self.differences)

    @property
    def growth(self) -> float | None:
        """Of the memory, from after the warm-up to the end; None while that is not known."""
        warm = [mb for at_s, mb in self.memory_mb if at_s >= WARM_UP * self.seconds]
        n = max(1, round(AN_END * len(warm)))
        return median(warm[-n:]) / median(warm[:n]) - 1 if len(warm) > 2 * n else None

    @property
    def checks(self) -> dict[str, bool]:
        return {
            "every conversation went on to its end": not self.errors and self.clips > 0,
            "no word was lost": not self.lost,
            "no word was doubled or added": not self.added,
            "every slot came back": self.slots_free == self.streams,
            f"memory grew by {MOST_GROWTH:.0%} at most": self.growth is not None
            and self.growth <= MOST_GROWTH,
        }

    @property
    def passed(self) -> bool:
        return all(self.checks.values())

    def as_json(self) -> dict[str, Any]:
        own = {"growth": self.growth and round(self.growth, 4), "lost": self.lost, "added": self.added}
        values = vars(self) | {"seconds": round(self.seconds, 1), "audio_s": round(self.audio_s, 1)}
        values["memory_mb"] = [(round(at_s, 1), round(mb, 1)) for at_s, mb in self.memory_mb]
        values["differences"] = [asdict(each) for each in self.differences]
        return {"passed": self.passed, "checks": self.checks} | own | values

    def rows(self) -> list[tuple[str, str]]:
        """What was measured, in words."""
        incidents = ", ".join(f"{n} {manner}" for manner, n in sorted(self.incidents.items()))
        errors = ", ".join(f"{code}: {n}" for code, n in self.errors.items())
        otherwise = sum(each.otherwise for each in self.differences)
        rows = [
            ("conversations", f"{self.visits}: {self.closed} closed, {self.left} left without a word"),
            ("on the way", incidents or "nothing"),
            ("reconnections", str(self.reconnections)),
            ("found no slot at first", str(self.refused)),
            ("said", f"{self.audio_s / 60:.1f} minutes"),
            ("compared", f"{self.clips} clips, {self.words} words"),
            ("lost, added, worded otherwise", f"{self.lost}, {self.added}, {otherwise} words"),
            ("errors", errors or "none"),
            ("slots free at the end", f"{self.slots_free} of {self.streams}"),
        ]
        if without := unheard(self.second_passes):
            rows.append(("finals without their second pass", without))
        if self.memory_mb:
            grown = "" if self.growth is None else f", {self.growth:+.1%} since the warm-up"
            rows.append(("memory at the end", f"{self.memory_mb[-1][1]:.0f} MB{grown}"))
        return rows

    def table(self) -> Table:
        """For people."""
        table = Table("measure", "value", title=self._title())
        for row in self.rows():
            table.add_row(*row)
        table.add_section()
        for check, passed in self.checks.items():
            table.add_row(check, "yes" if passed else "NO", style=None if passed else "bold red")
        return table

    def markdown(self) -> str:
        """A page about it, which shows the plot."""
        lines = [f"# {self._title()}", "", "| check | |", "|---|---|"]
        lines += [f"| {check} | {'yes' if passed else '**no**'} |" for check, passed in self.checks.items()]
        lines += [
            "",
            "| measure | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in self.rows()),
        ]
        lines += ["", "![memory over time](soak.png)", ""]
        if self.differences:
            lines += ["| clip | heard in quiet | heard here |", "|---|---|---|"]
            lines += [
                f"| {each.clip or '(silence)'} | {each.quiet} | {each.heard} |" for each in self.differences
            ]
            lines += ["", "soak.json tells the story of each one's conversation."]
        return "\n".join(lines).rstrip() + "\n"

    def plot(self, path: Path) -> None:
        """The server's memory over time, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        panel = figure.subplots()
        panel.plot([at_s / 60 for at_s, _ in self.memory_mb], [mb for _, mb in self.memory_mb])
        panel.axvspan(0, WARM_UP * self.seconds / 60, color="grey", alpha=0.2, label="warm-up")
        top = HEADROOM * max((mb for _, mb in self.memory_mb), default=1.0)
        panel.set(xlabel="minutes", ylabel="resident memory of the server, MB", ylim=(0, top))
        panel.legend(loc="lower right")
        save_figure(figure, path)

    def _title(self) -> str:
        short = "" if self.seconds >= self.planned_s else f" of {self.planned_s / 60:g}"
        return f"A soak of {self.seconds / 60:.1f}{short} minutes, {self.streams} clients"

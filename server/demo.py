"""The demonstration: a clip is spoken to a real server, and everything that is shown was measured."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asr.audio import SAMPLE_RATE, read_audio
from server.child import ChildServer
from server.client import StreamClient
from server.local import converse
from server.sources import spoken
from server.terminal import TimedLines, print_result, screen
from streaming.events import Event, Final, Partial, Word

BLOCK_MS = 100
WARM_UP_S = 2.0  # of the clip, at once, before: a server that has run for a while is what is shown


@dataclass
class Hearing:
    """What came back from the server, and when."""

    started: float = field(default_factory=time.monotonic)  # the first sample was spoken
    partials: list[tuple[float, Partial]] = field(default_factory=list)  # arrival, ms since `started`
    finals: list[Final] = field(default_factory=list)

    def note(self, event: Event) -> None:
        if isinstance(event, Partial):
            self.partials.append(((time.monotonic() - self.started) * 1000, event))
        elif isinstance(event, Final):
            self.finals.append(event)

    @property
    def words(self) -> list[Word]:
        return [word for final in self.finals for word in final.words]

    def lags_ms(self) -> list[float]:
        """For each partial that came while audio did: from its last sample spoken to its arrival."""
        return [arrived - partial.audio_ms for arrived, partial in self.partials]


@dataclass(frozen=True)
class SeenWord:
    """A word of the last partial of its utterance, and since when it stood there."""

    text: str
    seen_ms: float


def seen_words(partials: Sequence[tuple[float, Partial]]) -> list[SeenWord]:
    """The words that partials ended with, each with the arrival of the first partial from which on it stayed."""
    utterances: dict[int, list[SeenWord]] = {}
    for arrived, partial in partials:
        before = utterances.get(partial.utterance, [])
        utterances[partial.utterance] = [
            before[i] if i < len(before) and _key(before[i].text) == _key(text) else SeenWord(text, arrived)
            for i, text in enumerate(partial.text.split())
        ]
    return [word for words in utterances.values() for word in words]


def delays_ms(seen: Sequence[SeenWord], words: Sequence[Word]) -> list[float | None]:
    """For each of `words`: from the end of its sound until it was seen; None where partials had another word."""
    delays: list[float | None] = [None] * len(words)
    matcher = SequenceMatcher(
        None, [_key(word.text) for word in words], [_key(word.text) for word in seen], autojunk=False
    )
    for i, j, n in matcher.get_matching_blocks():
        for k in range(n):
            delays[i + k] = seen[j + k].seen_ms - words[i + k].end_ms
    return delays


async def show(server: ChildServer, clip: Path, chunk_ms: int) -> bool:
    """Speaks the clip to the server, shows what comes, then what was measured; False if no words came."""
    samples = read_audio(clip)
    await _warm_up(server, clip, chunk_ms)
    computed_s = server.model_seconds()
    hearing = Hearing()
    with screen(TimedLines) as shown:

        def hear(event: Event) -> None:
            hearing.note(event)
            shown.show(event)

        async with StreamClient(server.url, chunk_ms=chunk_ms) as client:
            hearing.started = time.monotonic()
            await converse(client, spoken(clip, BLOCK_MS), hear)
    audio_s = len(samples) / SAMPLE_RATE
    rtf = (server.model_seconds() - computed_s) / audio_s
    print_result(*_findings(hearing, audio_s, rtf))
    return bool(hearing.words)


async def _warm_up(server: ChildServer, clip: Path, chunk_ms: int) -> None:
    samples = read_audio(clip)[: int(WARM_UP_S * SAMPLE_RATE)]
    async with StreamClient(server.url, chunk_ms=chunk_ms) as client:
        await client.send(samples)
        await client.close()
        async for _ in client:
            pass


def _findings(hearing: Hearing, audio_s: float, rtf: float) -> list[RenderableType]:
    """The transcript word by word, and the numbers."""
    delays = delays_ms(seen_words(hearing.partials), hearing.words)
    table = Table(title="Words of the finals", min_width=48)
    for heading in ("word", "start, s", "end, s", "seen after, ms"):
        table.add_column(heading, justify="left" if heading == "word" else "right")
    for word, delay in zip(hearing.words, delays, strict=True):
        table.add_row(
            Text(word.text),
            f"{word.start_ms / 1000:.2f}",
            f"{word.end_ms / 1000:.2f}",
            "" if delay is None else f"{delay:.0f}",
        )
    known = [delay for delay in delays if delay is not None]
    lags = hearing.lags_ms()
    numbers = Text("\n").join(
        Text(line)
        for line in (
            f"words: {len(hearing.words)}, of which {len(known)} were already in the partials",
            *([f"a word was seen {median(known):.0f} ms after its end (median)"] if known else []),
            *(
                [f"a partial came {median(lags):.0f} ms after its audio (median), {max(lags):.0f} ms at most"]
                if lags
                else []
            ),
            f"real-time factor of the streaming model: {rtf:.2f} ({audio_s:.1f} s of audio)",
        )
    )
    return [Group(table, numbers)]


def _key(word: str) -> str:
    """What two spellings of a word have in common."""
    return re.sub(r"[^\w']", "", word.lower())

"""Finals written down: plain text, JSON, and subtitles as SRT or WebVTT."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from textwrap import wrap

from streaming.events import Final, Word

# What a reader can follow, after the subtitle guidelines of broadcasters.
LINE_CHARACTERS = 42
LINES = 2
SHORTEST_MS, LONGEST_MS = 1_000, 6_000
PAUSE_MS = 1_500  # longer ones are not bridged
SENTENCE_ENDS = (".", "?", "!")
ENOUGH_MS = 2_000  # a cue that long may end with its sentence


@dataclass(frozen=True)
class Cue:
    """What stands on the screen at once."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def as_text(finals: Sequence[Final]) -> str:
    """A line per utterance."""
    return "".join(f"{final.text}\n" for final in finals)


def as_json(finals: Sequence[Final]) -> str:
    """One object: `text`, and `utterances` with the times and words of each; times in milliseconds."""
    utterances = [
        {
            "start_ms": final.start_ms,
            "end_ms": final.end_ms,
            "text": final.text,
            "words": [asdict(word) for word in final.words],
        }
        for final in finals
    ]
    whole = {"text": " ".join(final.text for final in finals), "utterances": utterances}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def as_srt(finals: Sequence[Final]) -> str:
    """SubRip subtitles."""
    return "\n".join(
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{_block(cue.lines)}"
        for number, cue in enumerate(cues(finals), 1)
    )


def as_vtt(finals: Sequence[Final]) -> str:
    """WebVTT subtitles; https://www.w3.org/TR/webvtt1/."""
    blocks = (
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{_escaped(_block(cue.lines))}"
        for cue in cues(finals)
    )
    return "\n".join(["WEBVTT\n", *blocks])


FORMATS: dict[str, Callable[[Sequence[Final]], str]] = {
    "text": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
}


def cues(finals: Sequence[Final]) -> list[Cue]:
    """Short pieces of the utterances, none overlapping the next, each long enough to be read where it can be."""
    pieces = [piece for final in finals for piece in _pieces(_spoken(final))]
    starts = [piece[0].start_ms for piece in pieces]
    ends = [max(piece[-1].end_ms, start + SHORTEST_MS) for piece, start in zip(pieces, starts, strict=True)]
    ends[:-1] = [min(end, following) for end, (_, following) in zip(ends, pairwise(starts), strict=False)]
    lines = (wrap(_text(piece), LINE_CHARACTERS, break_on_hyphens=False) for piece in pieces)
    return [Cue(*cue) for cue in zip(starts, ends, map(tuple, lines), strict=True)]


def _spoken(final: Final) -> Sequence[Word]:
    return final.words or (Word(final.text, final.start_ms, final.end_ms, 0.0),)


def _pieces(words: Sequence[Word]) -> Iterator[list[Word]]:
    """The words in runs that fit on the screen; a sentence's end or a pause ends a run early."""
    piece: list[Word] = []
    for word in words:
        if piece and _complete(piece, word):
            yield piece
            piece = []
        piece.append(word)
    if piece:
        yield piece


def _complete(piece: list[Word], following: Word) -> bool:
    start_ms, end_ms = piece[0].start_ms, piece[-1].end_ms
    return (
        following.end_ms - start_ms > LONGEST_MS
        or following.start_ms - end_ms > PAUSE_MS
        or (piece[-1].text.endswith(SENTENCE_ENDS) and end_ms - start_ms >= ENOUGH_MS)
        or len(wrap(_text([*piece, following]), LINE_CHARACTERS, break_on_hyphens=False)) > LINES
    )


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _block(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _clock(ms: int, point: str) -> str:
    """hours:minutes:seconds, `point`, milliseconds."""
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

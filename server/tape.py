"""What a client has said since the last bookmark, kept so that it can be said again over a new connection."""

from typing import Literal

Control = Literal["finalize", "close"]


class Tape:
    """Audio and controls in the order they were said. A reader asks for entry 0, 1, 2 ... and may begin again
    at `first` at any time; what is safely finished is forgotten, from the front.
    """

    def __init__(self, sample_rate: int, frame_bytes: int) -> None:
        """`frame_bytes`: one sample of every channel."""
        self._rate = sample_rate
        self._frame_bytes = frame_bytes
        self._entries: list[bytes | Control] = []
        self._start = self._end = 0  # frames on the timeline, of the first entry and after the last
        self.first = 0  # the number of the first entry that is kept
        self.base_ms = 0  # where the audio that is kept begins
        self.closed = False

    @property
    def end_ms(self) -> int:
        """How much audio was said."""
        return self._end * 1000 // self._rate

    def record(self, data: bytes) -> None:
        """Appends audio. Raises ValueError unless it is whole frames."""
        frames, rest = divmod(len(data), self._frame_bytes)
        if rest:
            raise ValueError(
                f"audio must come in whole frames of {self._frame_bytes} bytes, not {len(data)} bytes"
            )
        if frames:
            self._entries.append(data)
            self._end += frames

    def mark(self, control: Control) -> None:
        """Appends a control; nothing comes after close."""
        self._entries.append(control)
        self.closed = self.closed or control == "close"

    def entry(self, number: int) -> bytes | Control | None:
        """Entry `number` >= first; None if it has not been said yet."""
        index = number - self.first
        return self._entries[index] if index < len(self._entries) else None

    def forget(self, audio_ms: int) -> None:
        """Drops the audio before `audio_ms`, and the finalizes up to there; close is never dropped."""
        cut = min(audio_ms * self._rate // 1000, self._end)
        if cut < self._start or audio_ms <= self.base_ms:
            return
        self.base_ms = min(audio_ms, self.end_ms)
        while self._entries and (entry := self._entries[0]) != "close":
            frames = 0 if isinstance(entry, str) else len(entry) // self._frame_bytes
            if self._start + frames > cut:
                break
            self._start += frames
            self.first += 1
            del self._entries[0]
        if self._start < cut:
            entry = self._entries[0]
            assert isinstance(entry, bytes), "only audio has a length"
            self._entries[0] = entry[(cut - self._start) * self._frame_bytes :]
            self._start = cut

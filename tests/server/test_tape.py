"""The tape against a plain model of it: whatever was said and is not finished is said again, in order."""

from hypothesis import given
from hypothesis import strategies as st

from server.tape import Tape


def replay(tape: Tape) -> tuple[bytes, list[tuple[int, str]]]:
    """The audio that is kept, and each control with the number of bytes before it."""
    audio, controls, number = b"", [], tape.first
    while (entry := tape.entry(number)) is not None:
        number += 1
        if isinstance(entry, bytes):
            audio += entry
        else:
            controls.append((len(audio), entry))
    return audio, controls


@given(st.lists(st.integers(0, 40) | st.just("finalize") | st.floats(0, 1.2), max_size=30))
def test_what_is_not_finished_is_kept(steps):
    rate, frame_bytes = 2000, 2  # 2 frames a ms
    tape, said, marks, base_ms = Tape(rate, frame_bytes), b"", [], 0
    for step in steps:
        if isinstance(step, int):
            data = bytes((len(said) + i) % 251 for i in range(step * frame_bytes))
            tape.record(data)
            said += data
        elif isinstance(step, str):
            tape.mark("finalize")
            marks.append(len(said))
        else:
            base_ms = max(base_ms, int(tape.end_ms * min(step, 1.0)))
            tape.forget(base_ms)
    cut = base_ms * rate // 1000 * frame_bytes
    audio, controls = replay(tape)
    assert tape.base_ms == base_ms
    assert audio == said[cut:]
    assert [at for at, _ in controls if at] == [mark - cut for mark in marks if mark > cut]


def test_close_is_never_forgotten():
    tape = Tape(16_000, 2)
    tape.record(bytes(3200))
    tape.mark("finalize")
    tape.mark("close")
    tape.forget(100)
    assert replay(tape) == (b"", [(0, "close")])
    assert tape.closed


def test_forgetting_more_than_was_said_stops_at_the_end():
    tape = Tape(44_100, 4)
    tape.record(bytes(4 * 44_100))
    tape.forget(5000)
    assert tape.base_ms == tape.end_ms == 1000
    assert replay(tape) == (b"", [])

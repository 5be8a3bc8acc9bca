"""What a terminal shows, and what Ctrl-C ends."""

import io
import itertools
import signal

import numpy as np
import pytest
from rich.console import Console
from rich.live import Live

from asr.audio import AudioError, PcmDecoder
from server.sources import read_pcm
from server.terminal import Interruption, LiveScreen, TimedLines, progress
from streaming.events import Final, Partial


def test_a_live_screen_rewrites_partials_and_keeps_finals():
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        LiveScreen(live).show(Partial(0, "stable unsure", 6, 100))
        LiveScreen(live).show(Final(0, "All is final.", (), 0, 100, 100))
    written = console.file.getvalue()
    assert "\x1b[1mstable\x1b[0m\x1b[2m unsure" in written
    assert written.rindex("All is final.") > written.rindex("unsure")


def test_timed_lines_mark_what_is_stable(capsys):
    TimedLines().show(Partial(0, "stable unsure", 6, 100))
    assert capsys.readouterr().out.endswith("partial  stable| unsure\n")


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    with progress("working") as show:
        show(1, 2)
        show(2, 2, "note")
    assert capsys.readouterr() == ("", "")


def test_an_interruption_ends_a_wait_for_input_and_no_work():
    def numbers():
        for number in itertools.count():
            if number == 3:
                signal.raise_signal(signal.SIGINT)
            yield number

    with Interruption() as interruption:
        assert list(interruption.ends(numbers())) == [0, 1, 2]
    assert interruption.asked

    worked = []
    with Interruption() as interruption:
        for number in interruption.ends(range(9)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            worked.append(number)
    assert worked == [0, 1, 2]


def test_the_second_interruption_interrupts():
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with Interruption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_pcm_comes_through_a_pipe_whole():
    samples = np.arange(-1000, 1000, dtype="<i2")
    pieces = list(read_pcm(io.BytesIO(samples.tobytes()), PcmDecoder("s16le")))
    np.testing.assert_array_equal(np.concatenate(pieces), samples / np.float32(32768))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no audio"),
        (b"RIFF....WAVE", "give the file's path"),
        (b"FORM....AIFC", "give the file's path"),
        (b"\0\0\0\x20ftypM4A ", "give the file's path"),
        (b"\xff\xfb\x90\xc4" + bytes(100), "give the file's path"),  # MP3 without tags
    ],
)
def test_a_pipe_without_pcm_is_an_error(data, message):
    with pytest.raises(AudioError, match=message):
        list(read_pcm(io.BytesIO(data), PcmDecoder("s16le")))


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("mulaw", b"\xff\xfb\x70\x7c"), ("s16le", b"\xff\xff\xff\xff"), ("s16le", b"\xff\xfb\xff\xfb")],
)
def test_quiet_audio_is_no_file(encoding, data):
    heard = np.concatenate(list(read_pcm(io.BytesIO(data), PcmDecoder(encoding))))
    assert 0 < np.abs(heard).max() < 0.1

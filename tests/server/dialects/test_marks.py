"""Ends that a client asks for, against the session's own count of samples."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import milliseconds
from server.dialects import Audio, Finalize
from server.dialects.g711 import alaw_to_s16le
from server.dialects.marks import Marks
from streaming.session import Session, SessionOptions
from tests.server.dialects.wire import final, partial

RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])


@settings(max_examples=40)
@given(RATES, st.lists(st.integers(0, 9000) | st.just(4_800), min_size=1, max_size=5))
def test_an_end_lies_where_the_session_puts_it_and_past_every_whole_chunk(rate, lengths):
    options = SessionOptions(sample_rate=rate)
    marks, session = Marks(options), Session(options, lambda: None, None)
    position = 0
    for n_bytes in lengths:
        session.receive(marks.receive(bytes(n_bytes)).data)
        fresh = marks.fresh
        for step in marks.ask():
            if isinstance(step, Audio):
                session.receive(step.data)
            else:
                assert step == Finalize()
                session.finalize()
        chunks_ms = position  # as far as it is decoded before the end is known
        while piece := session.take(4_800):
            samples, ending = piece
            if not ending:
                chunks_ms = position + len(samples)
            position += len(samples)
            if ending:
                break
        assert marks.received_ms == milliseconds(position)
        assert not fresh or milliseconds(chunks_ms) < marks.received_ms or not position
        assert marks.progress(milliseconds(position)) == 1


def test_an_end_on_the_edge_of_a_chunk_is_moved_and_the_times_moved_back():
    marks = Marks(SessionOptions())
    marks.receive(bytes(9600))  # 300 ms
    silence, finalize = marks.ask()
    assert (silence, finalize) == (Audio(bytes(32)), Finalize())
    assert marks.received_ms == 301
    assert [marks.client_ms(ms) for ms in (0, 300, 301, 401)] == [0, 300, 300, 400]
    assert marks.progress(300) == 0
    assert marks.progress(301) == 1


def test_words_that_are_not_final_hold_an_end_back():
    marks = Marks(SessionOptions())
    marks.receive(bytes(19_300))
    marks.ask()
    assert marks.heard(partial()) == 0
    assert marks.progress(5000) == 0
    assert marks.heard(final(audio_ms=500)) == 0  # of another utterance, before it
    assert marks.heard(partial(utterance=2, ms=900)) == 1  # beyond it


def test_words_that_were_taken_back_hold_no_end_back():
    marks = Marks(SessionOptions())
    marks.receive(bytes(19_300))
    marks.ask()
    marks.heard(partial(ms=300))
    assert marks.heard(partial((), ms=600)) == 0  # of what has been heard before the end
    assert not marks.speaking
    assert marks.progress(604) == 1


@pytest.mark.parametrize("encoding", ["s16le", "f32le", "mulaw"])
def test_silence_is_silence_in_every_encoding(encoding):
    session = Session(SessionOptions(encoding=encoding), lambda: None, None)
    marks = Marks(session.options)
    session.receive(marks.ask()[0].data if marks.fresh else b"")
    session.receive(marks.receive(bytes([255]) * 4 * 4800 if encoding == "mulaw" else bytes(4 * 4800)).data)
    for step in marks.ask():
        if isinstance(step, Audio):
            session.receive(step.data)
    samples, _ = session.take(4800)
    assert not samples.any()


def test_alaw_is_what_libsndfile_makes_of_it():
    codes = bytes(range(256))
    samples, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", samplerate=8000, channels=1, format="RAW", subtype="ALAW"
    )
    assert np.array_equal(np.frombuffer(alaw_to_s16le(codes), "<i2"), samples)

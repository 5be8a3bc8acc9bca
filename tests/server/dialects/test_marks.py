"""Ends that a client asks for, against the session's own count of samples."""

import io

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import milliseconds
from server.dialects import Finalize
from server.dialects.g711 import alaw_to_s16le
from server.dialects.marks import Marks
from streaming.events import Closed, Endpoint, Finalized
from streaming.session import Session, SessionOptions
from tests.server.dialects.wire import final, partial

RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])


@settings(max_examples=40)
@given(RATES, st.lists(st.integers(0, 9000) | st.just(4_800), min_size=1, max_size=5))
def test_an_end_lies_where_the_session_puts_it(rate, lengths):
    options = SessionOptions(sample_rate=rate)
    marks, session = Marks(options), Session(options, lambda: None, None)
    position = 0
    for n_bytes in lengths:
        session.receive(marks.receive(bytes(n_bytes)).data)
        assert marks.ask() == Finalize()
        session.finalize()
        while piece := session.take(4_800):
            samples, ending = piece
            position += len(samples)
            if ending:
                break
        assert marks.received_ms == milliseconds(position)
        assert marks.heard(Finalized(milliseconds(position))) == 1
        assert marks.heard(Finalized(milliseconds(position))) == 0


def test_an_end_is_carried_out_when_the_session_says_so_or_says_a_final_that_ends_there():
    marks = Marks(SessionOptions())
    marks.receive(bytes(19_200))  # 600 ms
    marks.ask()
    assert marks.heard(partial()) == 0
    assert marks.heard(final(audio_ms=500)) == 0  # of another utterance, before it
    assert marks.heard(Finalized(600)) == 1
    marks.receive(bytes(9_600))
    marks.ask()
    assert marks.heard(final(utterance=1, audio_ms=900)) == 1
    assert marks.heard(Finalized(900)) == 0


def test_ends_at_one_place_are_carried_out_together_and_a_close_does_it_for_all():
    marks = Marks(SessionOptions())
    for n_bytes in (9_600, 0, 3_200):
        marks.receive(bytes(n_bytes))
        marks.ask()
    assert marks.heard(Finalized(300)) == 2
    assert marks.heard(Closed(400, 0, 0)) == 1


def test_who_speaks_is_seen_from_words_that_are_not_final():
    marks = Marks(SessionOptions())
    assert not marks.speaking
    marks.heard(partial())
    assert marks.speaking
    marks.heard(partial(()))  # all taken back: no final may follow
    assert not marks.speaking
    marks.heard(Endpoint(0, 900))
    assert marks.speaking
    marks.heard(final())
    assert not marks.speaking


def test_alaw_is_what_libsndfile_makes_of_it():
    codes = bytes(range(256))
    samples, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", samplerate=8000, channels=1, format="RAW", subtype="ALAW"
    )
    assert np.array_equal(np.frombuffer(alaw_to_s16le(codes), "<i2"), samples)

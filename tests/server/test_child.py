"""A server in a child process, with the fake model: its life, the load on it, and the demonstration."""

import asyncio
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from server.bench import measure
from server.child import child_server
from server.demo import SeenWord, delays_ms, seen_words, show
from server.dial import ServerError
from server.processes import memory_mb
from streaming.events import Partial, Word
from tests.server.fakes import speech

PROGRAM = """
import sys
from server.app import serve
from server.config import Settings
from tests.server.fakes import FakeEngine
sys.stderr.write("loading\\n")
serve(Settings(port=0), FakeEngine)
"""
FAKE_SERVER = [sys.executable, "-c", PROGRAM]
JFK = Path(__file__).parents[2] / "samples" / "jfk.wav"


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_STREAM_API_KEY", "of another server")
        with child_server(FAKE_SERVER) as running:
            yield running
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


def test_load_is_measured_on_both_sides(server):
    says = np.frombuffer(speech(1, 0), "<i2").astype(np.float32) / 32_767
    report = measure(server, [says], streams=2, seconds=0.4, chunk_ms=100)
    assert (report.load.answered, report.load.errors) == (8, {})
    values = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert values["streams"] == 2
    assert values["second_passes"] == {"heard": 4, "skipped": 0, "failed": 0}
    if sys.platform == "linux":
        assert values["memory_mb"] > 10
        assert values["cpu_cores"] >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_libraries_that_processes_share_count_once(server):
    here, there = memory_mb(os.getpid()), memory_mb(server.pid)
    assert here > there > 10
    assert here < memory_mb(os.getpid(), server.pid) < here + there
    assert memory_mb(2**22 + 1) is None


def test_a_server_that_does_not_start_is_told_by_its_last_words():
    program = "import sys; sys.exit('no weights: get some')"
    with (
        pytest.raises(ServerError, match="no weights: get some"),
        child_server([sys.executable, "-c", program]),
    ):
        pass


def test_the_demonstration_shows_what_it_measured(server, capsys):
    assert asyncio.run(show(server, JFK.with_name("austen-0880.flac"), chunk_ms=300))
    said = capsys.readouterr().out
    assert " s  partial  |w" in said
    assert " s  final    w" in said
    assert "a word was seen" in said
    assert "real-time factor of the streaming model: 0.0" in said


def test_words_are_seen_since_they_stay():
    partials = [
        (100.0, Partial(0, "so", 0, 90)),
        (200.0, Partial(0, "So my", 2, 190)),
        (300.0, Partial(0, "So, by fellow", 3, 290)),
        (500.0, Partial(1, "ask", 0, 490)),
    ]
    seen = seen_words(partials)
    assert [(word.text, word.seen_ms) for word in seen] == [
        ("so", 100),
        ("by", 300),
        ("fellow", 300),
        ("ask", 500),
    ]


def test_a_delay_is_known_where_both_passes_agree():
    seen = [SeenWord("So", 100.0), SeenWord("by", 300.0), SeenWord("fellow", 300.0)]
    words = [Word("So,", 0, 80, 0.9), Word("my", 80, 150, 0.9), Word("fellow", 150, 220, 0.9)]
    assert delays_ms(seen, words) == [20.0, None, 80.0]

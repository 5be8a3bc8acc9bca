"""The page in a real browser: a clip is spoken into its microphone, and its words must come to stand there."""

import asyncio
import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr.audio import SAMPLE_RATE, read_audio
from asr_stream import build_engine
from streaming.events import Final, Word
from streaming.transcript import FORMATS
from tests.browser.chromium import Page, browsing
from tests.conftest import SAMPLES
from tests.server.fakes import FakeEngine, text
from tests.server.running import Running, serving, start, until

pytestmark = pytest.mark.browser

CLIPS = {  # of samples/, with a word or two that tiny.en mishears
    "austen-0880": "he was not an ill disposed young man",
    "austen-0930": "he might even have been made amiable himself",
}
ALIKE = 0.75  # of the words
IDLE = "document.body.dataset.state === 'idle'"


@pytest.fixture
def engine() -> Iterator[Any]:
    """The real one; its server closes it."""
    threads = torch.get_num_threads()
    yield build_engine("tiny.en", slots=2, threads=1)
    torch.set_num_threads(threads)


def recording(path: Path, *clips: str) -> Path:
    """A WAV file with these clips: a second of silence before each and behind the last."""
    silence = np.zeros(SAMPLE_RATE, np.float32)
    pieces = [piece for clip in clips for piece in (silence, read_audio(SAMPLES / f"{clip}.flac"))]
    soundfile.write(path, np.concatenate([*pieces, silence]), SAMPLE_RATE, "PCM_16")
    return path


def address(running: Running) -> str:
    return f"http://127.0.0.1:{running.port}/"


def words(line: str) -> list[str]:
    return re.findall(r"[a-z']+", line.lower())


def assert_said(line: str, *clips: str) -> None:
    """The clips' words, none lost and none said twice but what the model mishears."""
    truth = [word for clip in clips for word in CLIPS[clip].split()]
    assert SequenceMatcher(None, words(line), truth).ratio() >= ALIKE, line
    assert abs(len(words(line)) - len(truth)) <= 2, line


async def spoken(page: Page) -> str:
    """The finals without their times."""
    return str(await page.run("[...document.querySelectorAll('.word')].map((w) => w.textContent).join(' ')"))


async def saved(page: Page, folder: Path, kind: str) -> str:
    """What the page gives to keep."""
    await page.click(f"[data-format={kind}]")
    path = folder / f"transcript.{kind}"
    await until(path.exists, timeout_s=60)
    return path.read_text(encoding="utf-8")


def test_what_is_said_into_the_microphone_stands_on_the_page_and_can_be_kept(engine, tmp_path):
    async def main() -> None:
        microphone = recording(tmp_path / "microphone.wav", "austen-0930")
        async with serving(engine) as running, browsing(tmp_path, microphone) as page:
            await page.open(address(running))
            await page.click("#speak")
            await page.until("document.querySelector('#settled').textContent")  # before any final
            assert await spoken(page) == ""
            await page.until("document.querySelector('.word')")
            assert re.fullmatch(r"\d+ ms|\d+\.\d s", await page.text("#lag-median"))
            await page.click("#speak")
            await page.until(IDLE)
            assert_said(await spoken(page), "austen-0930")
            assert await page.text("#partial") == ""
            kept = json.loads(await saved(page, tmp_path, "json"))
            assert kept["text"] == await spoken(page)
            await words_tell_their_times(
                page, [Word(**word) for each in kept["utterances"] for word in each["words"]]
            )
            await texts_are_those_of_the_command(page, tmp_path, kept)
            assert page.errors == []

    asyncio.run(main())


async def words_tell_their_times(page: Page, said: list[Word]) -> None:
    """By keyboard alone: Tab reaches the words, arrows go from one to the next, Escape hides the tip."""

    def tip(word: Word) -> str:
        return f"0:{word.start_ms / 1000:05.2f} to 0:{word.end_ms / 1000:05.2f} · {word.confidence * 100:.0f} % sure"

    async def focused() -> str:
        return str(await page.run("document.activeElement.textContent"))

    await page.run("document.querySelector('#speak').focus()")
    await page.press("Tab", shift=True)
    assert (await focused(), await page.text("#tip")) == (said[0].text, tip(said[0]))
    await page.press("ArrowRight")
    assert (await focused(), await page.text("#tip")) == (said[1].text, tip(said[1]))
    await page.press("Escape")
    assert await page.run("document.querySelector('#tip').hidden")
    await page.press("End")
    assert not await page.run("document.querySelector('#tip').hidden")
    assert (await focused(), await page.text("#tip")) == (said[-1].text, tip(said[-1]))
    await page.press("Tab")
    assert await page.run("document.activeElement.id") == "speak"


async def texts_are_those_of_the_command(page: Page, folder: Path, kept: dict[str, Any]) -> None:
    finals = [
        Final(
            number,
            each["text"],
            tuple(Word(**word) for word in each["words"]),
            each["start_ms"],
            each["end_ms"],
            0,
        )
        for number, each in enumerate(kept["utterances"])
    ]
    assert kept == json.loads(FORMATS["json"](finals))
    for kind, form in {"txt": "text", "srt": "srt", "vtt": "vtt"}.items():
        assert await saved(page, folder, kind) == FORMATS[form](finals)


def test_a_file_is_played_through_and_survives_a_cut_connection(engine, tmp_path):
    async def main() -> None:
        async with serving(engine) as running, browsing(tmp_path) as page:
            await page.open(address(running))
            await page.choose_file("#file", recording(tmp_path / "file.wav", *CLIPS))
            await page.until("document.querySelector('#settled').textContent")  # in mid-utterance
            running.house.draining = True  # refuses who comes, without a word to who is here
            for connection in list(running.server.server_state.connections):
                connection.transport.abort()
            await page.until("document.body.dataset.state === 'reconnecting'")
            await asyncio.sleep(1.0)
            assert "trying again" in await page.text("#status")
            running.house.draining = False
            await page.until(IDLE)  # at the file's end, by itself
            assert await page.text("#notice") == ""
            assert_said(await spoken(page), *CLIPS)

    asyncio.run(main())


SPEAK = """
(async () => {
  const { Conversation } = await import(new URL("static/conversation.js", location));
  window.finals = [];
  window.states = [];
  window.partials = [];
  const heard = (m) => (m.type === "final" ? finals.push(m) : partials.push(m.audio_ms));
  window.conversation = new Conversation(
    { query: { chunk_ms: 200 }, key: "", rate: 16000, startMs: 1000 },
    { heard, behind: () => {}, state: (name) => states.push(name) },
  );
  window.over = conversation.run().then(() => "told all", (error) => error.message);
  window.said = 0;
  window.sayTo = async (last) => {
    while (said < last) {
      said++;
      conversation.say(new Int16Array(1600).fill(said));
      if (said % 7 === 0) conversation.say(new Int16Array(1600));
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
})()
"""


@pytest.mark.parametrize("how", ["kill", "drain"])
def test_a_server_that_dies_and_comes_back_loses_and_repeats_nothing(how, tmp_path):
    """As tests/server/test_client.py proves it of the client in Python, word by word."""

    async def main() -> None:
        running = await start(FakeEngine(step_s=0.002))
        async with browsing(tmp_path) as page:
            await page.open(address(running))
            await page.run(SPEAK)
            for last in (9, 24, 40):
                await page.run(f"sayTo({last})")
                if last == 40:
                    await page.run("conversation.finish()")
                else:
                    engine = running.engine
                    await until(lambda engine=engine: bool(engine.sessions), timeout_s=60)
                await (running.kill() if how == "kill" else running.stop())
                running = await start(FakeEngine(step_s=0.002), port=running.port)
            assert await page.run("over") == "told all"
            finals = await page.run("finals")
            assert " ".join(final["text"] for final in finals) == text(*range(1, 41))
            starts = [word["start_ms"] for final in finals for word in final["words"]]
            assert starts == [1000 + 100 * (number - 1 + (number - 1) // 7) for number in range(1, 41)]
            partials = await page.run("partials")
            assert partials == sorted(set(partials))
            states = await page.run("states")
            assert "reconnecting" in states
            assert states[-1] == "finishing"
        await running.stop()

    asyncio.run(main())


def test_the_door_is_explained_and_the_timeline_goes_on(tmp_path):
    """A key that is missing or wrong, a server that is full; then the microphone, twice; then a new transcript."""

    async def main() -> None:
        noise = tmp_path / "noise.wav"  # the fake model takes every sample that is not zero for a word
        soundfile.write(
            noise, np.random.default_rng(0).uniform(-0.5, 0.5, 60 * SAMPLE_RATE), SAMPLE_RATE, "PCM_16"
        )
        async with (
            serving(FakeEngine(slots=1), api_key="open sesame") as running,
            browsing(tmp_path, noise) as page,
        ):
            await page.open(address(running))
            assert await page.run("!document.querySelector('#key-row').hidden")
            for key, answer in {"": "wants a key", "wrong": "does not know this key"}.items():
                await page.run(f"document.querySelector('#key').value = {json.dumps(key)}")
                await page.click("#speak")
                await page.until(
                    f"document.querySelector('#notice').textContent.includes({json.dumps(answer)})"
                )
                await page.until(IDLE)
            await page.run("document.querySelector('#key').value = 'open sesame'")
            running.engine.slots = 0
            await page.click("#speak")
            await page.until("document.querySelector('#notice').textContent.includes('is full')")
            await page.until(IDLE)
            running.engine.slots = 1
            heard: list[dict[str, Any]] = []
            for _ in range(2):
                await page.click("#speak")
                await page.until("document.querySelector('#open').textContent")
                assert await page.text("#notice") == ""
                await page.click("#speak")
                await page.until(IDLE)
                before = heard
                heard = json.loads(await saved(page, tmp_path, "json"))["utterances"]
                (tmp_path / "transcript.json").unlink()
                assert heard[: len(before)] == before
                assert len(heard) > len(before)
                starts = [word["start_ms"] for each in heard for word in each["words"]]
                assert starts == sorted(set(starts))
            await page.click("#clear")
            assert await page.text("#finals") == ""
            assert await page.run("document.querySelector('[data-format=txt]').disabled")

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_phone_shows_everything_and_a_screen_reader_names_it(scheme, tmp_path):
    async def main() -> None:
        async with serving(FakeEngine()) as running, browsing(tmp_path) as page:
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True
            )
            features = [
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]
            await page.call("Emulation.setEmulatedMedia", features=features)
            await page.open(address(running))
            await page.run("document.querySelector('details').open = true")
            assert await page.run("document.documentElement.scrollWidth") <= 320
            heights = await page.run(
                "[...document.querySelectorAll('button, .button')].map((b) => b.getBoundingClientRect().height)"
            )
            assert min(heights) >= 44
            await page.call("Accessibility.enable")
            tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
            controls = {
                node["name"]["value"]
                for node in tree
                if node.get("role", {}).get("value")
                in ("button", "slider", "checkbox", "combobox", "textbox", "log")
            }
            assert {
                "Speak",
                "Play a file",
                "Chunk",
                "Delay",
                "Second pass",
                "Model",
                "Transcript",
            } <= controls
            assert "" not in controls
            paper = await page.run("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper))) < 128) == (scheme == "dark")
            assert (
                await page.run("getComputedStyle(document.querySelector('#level')).transitionDuration")
                == "0s"
            )
            assert page.errors == []

    asyncio.run(main())

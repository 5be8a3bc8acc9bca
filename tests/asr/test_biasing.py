"""Prompts and hotwords: what they are made of, what they favour, and that they put nothing into a speaker's mouth."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asr.audio import read_audio
from asr.beam import BeamSearch
from asr.biasing import MAX_PROMPT_TOKENS, Guidance, Hotwords, prompt_tokens
from asr.checkpoint import Whisper
from asr.limits import MAX_HOTWORDS, checked_hotwords, read_hotwords
from asr.offline import OfflineDecoder
from asr.search import GreedySearch
from tests.asr.scripted import EOT, VOCABULARY, hear, search_over
from tests.conftest import SAMPLES


def bonus(hotwords: Hotwords, *said: int) -> list[float]:
    """What every token gains after `said`."""
    logits = torch.arange(EOT + 1.0)
    return (hotwords.favour(logits, said) - logits).tolist()


def gains(**tokens: float) -> list[float]:
    """`t3=2.0`: token 3 gains 2; `rest`: what the others do. EOT never gains nor loses."""
    rest = tokens.pop("rest", 0.0)
    named = {int(name[1:]): gain for name, gain in tokens.items()}
    return [0.0 if token == EOT else named.get(token, rest) for token in range(EOT + 1)]


def test_a_bonus_for_every_token_of_a_phrase_given_back_if_it_is_left() -> None:
    hotwords = Hotwords(VOCABULARY, ["123"], boost=2.0)
    assert bonus(hotwords) == gains(t1=2)
    assert bonus(hotwords, 5) == gains(t1=2)
    assert bonus(hotwords, 1) == gains(t2=2, rest=-2, t1=0)  # another one may begin
    assert bonus(hotwords, 1, 2) == gains(t3=2, rest=-4, t1=-2)
    assert bonus(hotwords, 1, 2, 3) == gains(t1=2)  # complete: what it has earned it keeps
    assert bonus(hotwords, 1, 2, 7) == gains(t1=2)
    assert bonus(hotwords, 1, 1) == gains(t2=2, rest=-2, t1=0)


def test_a_phrase_within_a_longer_one_keeps_its_own() -> None:
    hotwords = Hotwords(VOCABULARY, ["12", "1234"], boost=1.0)
    assert bonus(hotwords, 1, 2) == gains(t3=1, t1=1)
    assert bonus(hotwords, 1, 2, 3) == gains(t4=1, rest=-1, t1=0)


def test_logits_are_left_as_they_were() -> None:
    logits = torch.zeros(EOT + 1)
    Hotwords(VOCABULARY, ["12"]).favour(logits, [1])
    assert not logits.any()


def test_phrases_begin_words_in_either_case(tiny: Whisper) -> None:
    tokenizer = tiny.vocabulary.tokenizer
    hotwords = Hotwords(tiny.vocabulary, ["dashwood"], boost=1.0)
    favoured = hotwords.favour(torch.zeros(tiny.vocabulary.eot + 1), [])
    begins = {tokenizer.encode(" dashwood")[0], tokenizer.encode(" Dashwood")[0]}
    assert {int(i) for i in favoured.nonzero()} == begins
    assert all(tokenizer.decode([token]).startswith(" ") for token in begins)


@pytest.mark.parametrize(
    ("chance", "boost", "says"), [(0.2, 2.0, True), (0.2, 0.0, False), (0.001, 2.0, False)]
)
@pytest.mark.parametrize("kind", [GreedySearch, BeamSearch])
def test_a_hotword_wins_where_it_is_likely_and_only_there(
    kind: type, chance: float, boost: float, says: bool
) -> None:
    """The confidence of its tokens stays the model's own."""

    def script(text: list[int], heard: list[int]) -> list[float]:
        if len(text) >= 2:
            return [math.log(0.9 if token == EOT else 0.01) for token in range(EOT + 1)]
        likely, rival = ((1, 5), (2, 6))[len(text)]
        if text and text[0] == 5:
            likely, rival = 0, 6
        rest = (1 - chance - 0.7) / (EOT - 1)
        return [math.log({likely: chance, rival: 0.7}.get(token, rest)) for token in range(EOT + 1)]

    width = {"width": 4} if kind is BeamSearch else {}
    search = search_over(script, kind, **width)
    state = search.init_state(1)
    hotwords = Hotwords(VOCABULARY, ["12"], boost) if boost else None
    search.reset(state, torch.tensor([0]), hotwords=[hotwords])
    said = hear(search, state, 0)
    assert said.tokens == ((1, 2) if says else (5, 6))
    assert said.logprobs == pytest.approx([math.log(chance if says else 0.7)] * 2, abs=1e-3)


def test_a_beam_takes_back_what_an_unfinished_phrase_has_earned() -> None:
    """1 wins over 2 with its bonus alone; but 1 is not followed by 3, and so the phrase 13 was not said."""

    def script(text: list[int], heard: list[int]) -> list[float]:
        if not text:
            chances = {1: 0.3, 2: 0.6}
        elif len(text) == 1:
            chances = {4: 0.9}
        else:
            chances = {EOT: 0.95}
        rest = (1 - sum(chances.values())) / (EOT + 1 - len(chances))
        return [math.log(chances.get(token, rest)) for token in range(EOT + 1)]

    search = search_over(script, BeamSearch, width=3)
    state = search.init_state(1)
    search.reset(state, torch.tensor([0]), hotwords=[Hotwords(VOCABULARY, ["13"], boost=1.5)])
    assert hear(search, state, 0).tokens == (2, 4)


# -- what may be given


def test_a_prompt_is_cut_to_its_end(tiny: Whisper) -> None:
    vocabulary = tiny.vocabulary
    assert prompt_tokens(vocabulary, "  \n ") == ()
    first, *rest = prompt_tokens(vocabulary, "Mr. Dashwood\n spoke.")
    assert first == vocabulary.tokenizer.sot_prev
    assert vocabulary.text(rest) == " Mr. Dashwood spoke."
    long = prompt_tokens(vocabulary, "one two three " * 100)
    assert len(long) == 1 + MAX_PROMPT_TOKENS
    assert vocabulary.text(list(long[1:])).endswith(" one two three")


def test_nobody_smuggles_special_tokens_in(tiny: Whisper) -> None:
    vocabulary = tiny.vocabulary
    assert max(prompt_tokens(vocabulary, "<|endoftext|> <|startoftranscript|>")[1:]) < vocabulary.eot
    favoured = Hotwords(vocabulary, ["<|endoftext|>"]).favour(torch.zeros(vocabulary.eot + 1), [])
    assert favoured[vocabulary.eot] == 0


def test_hotwords_come_as_a_list_or_in_a_file(tmp_path: Path) -> None:
    assert read_hotwords("") == ()
    assert read_hotwords("Ada,  Mont   Blanc ,,Ada") == ("Ada", "Mont Blanc")
    (tmp_path / "words.txt").write_text("Ada\n\nMont Blanc, Chamonix\n", encoding="utf-8")
    assert read_hotwords(f"@{tmp_path / 'words.txt'}") == ("Ada", "Mont Blanc, Chamonix")
    with pytest.raises(
        ValueError, match=r"hotwords @.*none\.txt cannot be read \(No such file or directory\): name"
    ):
        read_hotwords(f"@{tmp_path / 'none.txt'}")
    (tmp_path / "words.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_hotwords(f"@{tmp_path / 'words.bin'}")


@pytest.mark.parametrize("words", [["x" * 61], ["--"], [f"word{i}" for i in range(MAX_HOTWORDS + 1)]])
def test_hotwords_that_cannot_be_used_are_refused_in_a_line(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*hotword[^\n]*$"):
        checked_hotwords(words)


# -- the real model

DISTRACTORS = ("Kierkegaard", "Wollstonecraft", "Zanzibar", "photosynthesis", "Mont Blanc", "Dostoevsky")


@pytest.fixture(scope="module")
def offline(tiny_en: Whisper) -> OfflineDecoder:
    return OfflineDecoder(tiny_en)


def clip(name: str) -> Tensor:
    return torch.from_numpy(read_audio(SAMPLES / name))


def said(offline: OfflineDecoder, samples: Tensor, **guidance) -> str:
    wishes = {"beam": 1, "prompt": "", "hotwords": (), "boost": 2.0} | guidance
    guide = Guidance.of(offline.model.vocabulary, **wishes)
    return " ".join(word.text for word in offline.transcribe(samples, guide))


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("name", ["jfk.wav", "austen-0890.flac"])
def test_words_that_are_not_spoken_do_not_appear(offline: OfflineDecoder, name: str, beam: int) -> None:
    without = said(offline, clip(name), beam=beam)
    assert len(without.split()) > 8
    assert said(offline, clip(name), beam=beam, hotwords=DISTRACTORS) == without


def test_a_rare_word_comes_out_right(offline: OfflineDecoder) -> None:
    """tiny.en hears an old-sposed young man; the hotword puts it right, and so do more hypotheses."""
    samples = clip("austen-0880.flac")
    assert said(offline, samples) == "He was not an old-sposed young man."
    right = "He was not an ill-disposed young man."
    assert said(offline, samples, hotwords=("ill-disposed",)) == right
    assert said(offline, samples, hotwords=(*DISTRACTORS, "ill-disposed")) == right
    assert said(offline, samples, beam=4) == right
    assert said(offline, samples, hotwords=DISTRACTORS) == "He was not an old-sposed young man."


def test_a_prompt_is_heeded(offline: OfflineDecoder) -> None:
    """Whisper goes on in the style of what stood before: here, without capitals and punctuation."""
    plain = said(offline, clip("jfk.wav"))
    prompted = said(offline, clip("jfk.wav"), prompt="and so he said it was done and they all went home " * 3)
    assert "Americans" in plain
    assert prompted.lower().replace(",", "").replace(".", "") == plain.lower().replace(",", "").replace(
        ".", ""
    )
    assert prompted != plain

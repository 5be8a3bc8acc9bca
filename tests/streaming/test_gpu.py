"""The recogniser on a GPU: on paper everywhere, and on a real one where there is one (marker `gpu`)."""

import copy
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import asr_stream
from asr.audio import read_audio
from asr.biasing import Guidance, Hotwords
from asr.captured import Graphs
from asr.checkpoint import Whisper
from asr.offline import OfflineDecoder
from asr.precision import for_serving
from asr.search import Hypothesis
from asr.timing import TimedWord
from asr.transducer.executor import Executor, Ready
from asr.transducer.rescorer import Rescorer
from streaming.events import Final, Partial
from streaming.recognizer import WhisperRecognizer, WhisperState
from streaming.session import SessionOptions
from streaming.transducer import TransducerRecognizer, TransducerState
from tests.conftest import SAMPLES
from tests.contract import random_noises
from tests.paper_gpu import PaperGpu, paper_gpu
from tests.streaming.transducers import tiny_transducer

CHUNK = 4_800
GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PaperGpu]:
    with paper_gpu(monkeypatch) as gpu:
        yield gpu


def moved(model: Whisper) -> Whisper:
    return copy.deepcopy(model).to(GPU)


def conversation(model: Whisper, noise: Tensor) -> tuple[list[list[Hypothesis]], WhisperState]:
    """What three streams have said after each chunk, the last of which comes later and has hotwords and a beam."""
    recognizer = WhisperRecognizer(model)
    state = recognizer.init_state(4)
    guided = Guidance(beam=3, hotwords=Hotwords(recognizer.vocabulary, ["Ada Lovelace"]))
    said = []
    for i, piece in enumerate(noise.split(CHUNK, dim=1)):
        if i == 0:
            recognizer.reset(state, torch.tensor([3, 1]), 15)
        if i == 2:
            recognizer.reset(state, torch.tensor([0]), 15, guidance=[guided])
        for rows in ([3, 1],) if i < 2 else ([3, 1], [0]):
            samples = piece[: len(rows)] if len(rows) > 1 else piece[2:]
            said.append(recognizer.step(samples, state, torch.tensor(rows))[0])
    return said, state


def test_says_on_paper_what_it_says_on_a_cpu(tiny: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random_noises(3, 6 * CHUNK, seed=0)
    expected, _ = conversation(tiny, noise)
    with paper_gpu(monkeypatch) as gpu:
        said, state = conversation(moved(tiny), noise)
        caches = (state.encoder.cache, state.search.decoder.audio, state.search.decoder.text)
        everything = [state.mel.tail, state.encoder.pending, state.encoder.edges.conv, *(c.k for c in caches)]
        assert all(x.device == GPU for x in everything)
    assert [[h.tokens for h in step] for step in said] == [[h.tokens for h in step] for step in expected]
    assert any(h.tokens for h in said[-1])
    assert gpu.replays > gpu.captures > 0


@pytest.mark.parametrize(
    ("beams", "favoured"), [((1, 1, 1), ()), ((1, 1, 1), ("Ada", "Ada Lovelace")), ((4, 1, 2), ("Ada",))]
)
def test_only_what_was_said_is_waited_for(
    tiny: Whisper,
    gpu: PaperGpu,
    beams: tuple[int, ...],
    favoured: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transfer for every round of tokens: to score again what may change, then to say one more in each stream.

    So with hotwords, which every other stream has here, and with beams, whose rounds are their own; and for the times
    of all words of a stream two.
    """
    model = moved(tiny)
    recognizer, rows, noise = WhisperRecognizer(model), torch.arange(3), random_noises(3, 5 * CHUNK, seed=0)
    state = recognizer.init_state(3)
    rounds = 0
    hidden = type(model.decoder).hidden

    def counted(*args: object) -> Tensor:
        nonlocal rounds
        rounds += 1
        return hidden(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.decoder), "hidden", counted)
    hotwords = Hotwords(recognizer.vocabulary, favoured) if favoured else None
    guidance = [Guidance(beam, hotwords=None if i % 2 else hotwords) for i, beam in enumerate(beams)]
    gpu.waits.clear()  # of loading
    recognizer.reset(state, rows, 15, guidance=guidance)
    for piece in noise.split(CHUNK, dim=1):
        recognizer.step(piece, state, rows)
    assert rounds > 10
    assert gpu.waits == ["aten._to_copy.default"] * rounds
    gpu.waits.clear()
    words = [recognizer.words(state, row, noise[row].numpy()) for row in range(3)]
    assert sum(map(len, words)) > 3
    assert gpu.waits == ["aten._to_copy.default"] * 2 * len([timed for timed in words if timed])


def test_what_hears_waits_for_nothing(tiny: Whisper, gpu: PaperGpu) -> None:
    """Mel, encoder, what the decoder keeps of it, and the decoder itself, in steps of all sizes."""
    model = moved(tiny)
    recognizer, rows = WhisperRecognizer(model), torch.tensor([2, 0])
    state = recognizer.init_state(3)
    gpu.waits.clear()  # of loading
    recognizer.reset(state, rows, 5)
    for piece in random_noises(2, 6 * CHUNK, seed=0).split(
        [100, 2 * CHUNK - 100, CHUNK, 7, 3 * CHUNK - 7], dim=1
    ):
        mel, _ = recognizer.mel.step(piece.pin_memory().to(GPU, non_blocking=True), state.mel, rows)
        features, replaced, _ = model.encoder.step(mel, state.encoder, rows)
        model.decoder.listen(features, state.search.decoder, rows, replaced)
        if features.shape[1]:
            hidden = model.decoder.hidden(torch.tensor([[1, 2, 3], [4, 5, 6]]), state.search.decoder, rows)
            assert hidden.shape == (2, 3, tiny.dims.n_text_state)
    assert gpu.waits == []


def ragged_conversation(
    recognizer: TransducerRecognizer,
) -> tuple[list[list[Hypothesis]], TransducerState]:
    """What a transducer has heard two streams say, and a third that comes later, with hotwords and a beam."""
    state, noise = recognizer.init_state(4), random_noises(3, 8 * CHUNK, seed=0)
    guided = Guidance(3, hotwords=Hotwords(recognizer.model.pieces, ["sad map"]))
    recognizer.reset(state, torch.tensor([3, 1]))
    recognizer.reset(state, torch.tensor([0]), guidance=[guided])
    said = []
    for i, piece in enumerate(noise.split(CHUNK, dim=1)):
        said.append(recognizer.step(piece[:2], state, torch.tensor([3, 1]))[0])
        if i > 1:
            said.append(recognizer.step(piece[2:], state, torch.tensor([0]))[0])
    return [*said, *(recognizer.flush(state, row, guided, behind=CHUNK) for row in (1, 0))], state


def test_a_transducer_says_on_paper_what_it_says_on_a_cpu(
    tiny: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits once for what each layer decides, and once for what its frames say; then a decoder chooses."""
    model, vocabulary = tiny_transducer(), tiny.vocabulary

    def chosen(recognizer: TransducerRecognizer, state: TransducerState) -> list[tuple[str, float, float]]:
        choose = recognizer.rescoring(state, 0, torch.zeros(8 * CHUNK).numpy())
        assert choose is not None
        return [(word.text, word.start, word.end) for word in choose()]

    on_cpu = TransducerRecognizer(model, Rescorer(tiny.decoder, vocabulary, weight=1.0))
    expected, state = ragged_conversation(on_cpu)
    words = chosen(on_cpu, state)
    assert sum(len(said.tokens) for step in expected[-3:] for said in step) > 3
    n_steps = 0
    step = Executor._step

    def counted(*args: object) -> Ready:
        nonlocal n_steps
        n_steps += 1
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Executor, "_step", counted)
    with paper_gpu(monkeypatch) as gpu:
        rescorer = Rescorer(moved(tiny).decoder, vocabulary, weight=1.0)
        recognizer = TransducerRecognizer(copy.deepcopy(model).to(GPU), rescorer)
        gpu.waits.clear()  # of loading
        said, state = ragged_conversation(recognizer)
        waits = Counter(gpu.waits)
        assert chosen(recognizer, state) == words
    assert [[h.tokens for h in step] for step in said] == [[h.tokens for h in step] for step in expected]
    assert gpu.replays > gpu.captures > 0
    assert set(waits) == {"aten._to_copy.default"}
    assert waits.total() <= len(model.encoder.layers) * n_steps + len(said)


def test_the_end_of_the_context_is_not_padded_over(tiny: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.arange(tiny.dims.n_text_ctx)[None]
    features = torch.randn(1, 9, tiny.dims.n_audio_state, generator=torch.Generator().manual_seed(0))

    def ends(model: Whisper) -> Tensor:
        state, row = model.decoder.init_state(1), torch.tensor([0])
        model.decoder.listen(features.to(model.device), state, row)
        model.decoder.hidden(tokens[:, :-3], state, row)
        return model.decoder.hidden(tokens[:, -3:], state, row).cpu()

    expected = ends(tiny)
    with paper_gpu(monkeypatch):
        torch.testing.assert_close(ends(moved(tiny)), expected)


@pytest.mark.parametrize("width", [1, 3])
def test_second_pass_says_on_paper_what_it_says_on_a_cpu(
    tiny: Whisper, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.offline.MAX_TOKENS", 8)
    monkeypatch.setattr("asr.offline.MIN_LOGPROB", -100.0)
    noise, guidance = random_noises(1, 2 * CHUNK, seed=0)[0], Guidance(beam=width)
    expected = OfflineDecoder(tiny).transcribe(noise, guidance)
    assert expected
    with paper_gpu(monkeypatch):
        said = OfflineDecoder(moved(tiny)).transcribe(noise, guidance)
    assert [(word.text, word.start, word.end) for word in said] == [
        (w.text, w.start, w.end) for w in expected
    ]


def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says that there is a GPU, and what it can do."""
    for name, answer in (("is_available", True), ("device_count", 1), ("is_bf16_supported", True)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)


def test_a_transducer_is_let_in_too(tiny_en: Whisper, gpu: PaperGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that ships, in the types that serve."""
    present(monkeypatch)
    engine = asr_stream.build_engine("ancat-tiny.en-80", slots=1, final_pass_thread=False)
    session = engine.open(SessionOptions(beam=2, final_pass="none"))
    session.receive_samples(read_audio(SAMPLES / "austen-0880.flac"))
    session.finish()
    while engine.step():
        pass
    (said,) = [event.text for event in session.events() if isinstance(event, Final)]
    assert "young man" in said
    assert gpu.replays > gpu.captures > 0


def test_the_front_door_opens_on_a_gpu(
    tiny_en: Whisper, gpu: PaperGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of a real model on paper, in the type that serves on GPUs, through both passes."""
    present(monkeypatch)
    engine = asr_stream.build_engine("tiny.en", slots=1, final_pass_thread=False)
    speech = read_audio(SAMPLES / "austen-0880.flac")
    engine.warm_up(speech, SessionOptions(final_pass="none"))
    assert gpu.stream.priority < gpu.default.priority, "partials go before second passes"
    session = engine.open(SessionOptions())
    session.receive_samples(speech)
    session.finish()
    while engine.step():
        pass
    events = session.events()
    for kind in (Partial, Final):
        said = [event.text for event in events if isinstance(event, kind)]
        assert "young man" in said[-1]
    assert gpu.replays > gpu.captures > 0


@pytest.mark.gpu
@pytest.mark.parametrize("serving", [False, True])
def test_captured_as_eager_as_on_a_cpu(
    tiny_en: Whisper, jfk: Tensor, serving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of a real model. The types that serve round otherwise than a CPU: their text is compared to itself."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_gpu = for_serving(moved(tiny_en)) if serving else moved(tiny_en)

    def text(model: Whisper) -> list[str]:
        recognizer, rows = WhisperRecognizer(model), torch.tensor([1, 0])
        state = recognizer.init_state(3)
        recognizer.reset(state, rows, 15)
        for piece in jfk.expand(2, -1).split(CHUNK, dim=1):
            said, _ = recognizer.step(piece, state, rows)
        return [recognizer.vocabulary.text(list(h.tokens)) for h in said]

    captured = text(on_gpu)
    monkeypatch.setattr(Graphs, "__call__", eager)
    assert captured == text(on_gpu)
    assert "country" in captured[0]
    if not serving:
        assert captured == text(tiny_en)


def spoken(word: TimedWord) -> str:
    return "".join(filter(str.isalnum, word.text)).lower()


def eager(graphs: Graphs, part, state, inputs, numbers):  # type: ignore[no-untyped-def]
    return part(state, *inputs, *(x.to(graphs.device) for x in numbers))


@pytest.mark.gpu
def test_second_pass_on_a_real_gpu(tiny_en: Whisper, jfk: Tensor) -> None:
    decoder, on_cpu = OfflineDecoder(for_serving(moved(tiny_en))), OfflineDecoder(tiny_en)
    for width in (1, 4):
        said, expected = (d.transcribe(jfk, Guidance(beam=width)) for d in (decoder, on_cpu))
        assert [spoken(word) for word in said] == [spoken(word) for word in expected]

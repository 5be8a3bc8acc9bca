"""Error rates and latencies of transducers under policies: against a real stream of the same clips."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from typer.testing import CliRunner

import asr_stream
from adapters import loading
from adapters.ancat.corpus import Clip, learn_pieces
from adapters.shipped import ADAPTER_FILE, ADAPTER_WEIGHTS
from asr import checkpoint
from asr.audio import SAMPLE_RATE, read_audio
from asr.checkpoint import Whisper
from asr.mel import LogMel
from asr.transducer.encoder import EncoderDims
from asr.transducer.executor import Executor
from asr.transducer.model import Transducer, load_head, save_head
from asr.transducer.schedule import named
from asr.transducer.trunk import FEATURE_MS, FRONT_END_MS, SAMPLES_PER_FEATURE, Trunk
from eval.datasets import DatasetError, Utterance
from eval.lookahead import REPORT, TRAILING_S, Head, Row, measure, shuffled
from eval.lookahead_page import error_against_latency, page, verdicts
from eval.run import EvaluationError
from eval.wer import count_edits, pooled
from tests.asr.transducer.random_models import unsettle

SAMPLES = Path(__file__).parent.parent.parent / "samples"
POLICIES = ("adaptive", "shuffled", "causal", "layerwise:2,0", "chunked:3")
SPAN, LAYERS = 4, 2


@pytest.fixture(scope="module")
def model(make_tiny: Callable[[int], Whisper]) -> Transducer:
    """It hears in words what nobody said, and waits for it."""
    pieces = learn_pieces([Clip("", 1.0, "one small step for man one giant leap for mankind")], 40)
    trunk = Trunk(make_tiny(0).encoder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dims = EncoderDims(features=trunk.width, width=32, heads=2, layers=LAYERS, span=SPAN, left=20)
        made = Transducer(trunk, pieces, dims)
        unsettle(made.encoder)
        with torch.no_grad():
            for layer in made.encoder.layers:
                layer.scheduler.own.weight.div_(4)
                layer.scheduler.offer.weight.div_(4)
            made.joiner.of_frames.weight.mul_(8)
            heard = torch.from_numpy(read_audio(SAMPLES / "jfk.wav"))[None, : 5 * SAMPLE_RATE]
            features = trunk(LogMel().whole(heard))
            frames, _ = made.encoder(features, torch.tensor([features.shape[1]]))
            logits = made.joiner.of_frames(frames[0])
            logits -= logits.mean(0)
            made.joiner.of_frames.bias -= made.joiner.of_frames(frames[0]).mean(0)  # no piece is always best
            speaks = logits[:, :-1].amax(1) - logits[:, -1]
            made.joiner.of_frames.bias[made.blank] += speaks.median()  # every other frame says something
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Three stretches of speech, of other lengths."""
    folder, samples = tmp_path_factory.mktemp("clips"), read_audio(SAMPLES / "jfk.wav")
    made = []
    for name, start, end in (("b", 0, 2.5), ("a", 3, 4.1), ("c", 5, 6.9)):
        path = folder / f"{name}.wav"
        soundfile.write(path, samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)], SAMPLE_RATE)
        made.append(Utterance(name, path, "one small step for man"))
    return made


def head(model: Transducer, **facts: object) -> Head:
    return Head("runs/ancat-tiny.en-80", "ancat-tiny.en-80 123", facts, lambda: model)


def slow_greedy(model: Transducer, frames: Tensor) -> list[tuple[int, int]]:
    """(piece, frame) of everything that (T, width) frames say, one question at a time."""
    said: list[tuple[int, int]] = []
    for number, frame in enumerate(frames):
        for _ in range(10):
            tokens = torch.tensor([[piece for piece, _ in said]], dtype=torch.int64)
            context = model.predictor(model.predictor.contexts(tokens))[0, -1]
            answers = model.joiner(frame, context)
            answers[model.pieces.unspoken] = -torch.inf
            piece = int(answers.argmax())
            if piece == model.blank:
                break
            said.append((piece, number))
    return said


def streamed(model: Transducer, clip: Utterance, policy: str) -> tuple[str, list[int], set[int]]:
    """What a stream of one clip says, the clock at which each frame was done, and the frames that said something."""
    samples = np.concatenate([read_audio(clip.audio), np.zeros(int(TRAILING_S * SAMPLE_RATE), np.float32)])
    n = -(-len(samples) // SAMPLES_PER_FEATURE) * SAMPLES_PER_FEATURE
    n_more = n + SAMPLES_PER_FEATURE - len(samples)  # what the front end looks ahead, and more
    padded = torch.from_numpy(np.pad(samples, (0, n_more)))[None]
    features = model.trunk(LogMel().whole(padded))[:, :-1]
    executor, row = Executor(model.encoder, named(policy, LAYERS)), torch.tensor([0])
    state, clock, frames = executor.init_state(1), [], []
    for i in range(features.shape[1]):
        ready, state = executor.step(features[:, i : i + 1], state, row, ending=i == features.shape[1] - 1)
        clock += [i] * int(ready.counts)
        frames.append(ready.frames[0])
    said = slow_greedy(model, torch.cat(frames))
    return model.pieces.text([piece for piece, _ in said]), clock, {frame for _, frame in said}


def by_policy(report: Row) -> dict[str, Row]:
    return {row["policy"]: row for row in report["rows"]}


@pytest.mark.parametrize("policy", ["adaptive", "causal", "layerwise:2,0", "chunked:3"])
def test_what_is_measured_at_once_is_what_streams_say_and_when(
    model: Transducer, utterances: list[Utterance], tmp_path: Path, policy: str
) -> None:
    said, edits, latency_ms, emitting_ms = [], [], [], []
    for one in utterances:
        text, clock, said_at = streamed(model, one, policy)
        own = [FRONT_END_MS + FEATURE_MS * (done - frame) for frame, done in enumerate(clock)]
        said.append(replace(one, text=one.text if one.id == "b" else text))
        edits.append(count_edits(said[-1].text or "", text))
        latency_ms += own
        emitting_ms += [own[frame] for frame in said_at]
        assert 0 < len(said_at) < len(own)
    report = measure([head(model)], said, tmp_path, policies=[policy])
    (row,) = report["rows"]
    assert [one.errors > 0 for one in edits] == [True, False, False]
    assert row["clips"] == [[one.errors, one.reference_words] for one in edits]
    assert row["wer"] == pooled(edits).rate
    assert report["clips"] == 3
    for found, true in ((row["latency_ms"], latency_ms), (row["emitting_latency_ms"], emitting_ms)):
        expected = {
            "mean": np.mean(true),
            "p50": np.median(true),
            "p90": np.percentile(true, 90),
            "max": max(true),
        }
        assert found == pytest.approx(expected, abs=5e-4)  # rounded to microseconds
    n_frames = len(latency_ms)
    assert np.array(row["spans"]).sum(axis=1).tolist() == [n_frames] * LAYERS
    if policy == "causal":
        assert row["latency_ms"]["max"] == FRONT_END_MS
        assert row["spans"] == [[n_frames, 0, 0, 0, 0]] * LAYERS
    if policy == "layerwise:2,0":
        assert row["latency_ms"]["p50"] == FRONT_END_MS + 2 * FEATURE_MS
        assert row["spans"][0][2] == n_frames - 2 * len(utterances)
    if policy == "adaptive":
        assert min(sum(count > 0 for count in layer) for layer in row["spans"]) >= 3, "spans vary"


def test_shuffling_keeps_the_spans_of_each_clip_and_layer_and_moves_them() -> None:
    spans = torch.randint(0, 5, (LAYERS, 2, 50), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([50, 20])
    moved = shuffled(spans, lengths, ["a", "b"], seed=0)
    for layer in range(LAYERS):
        for row, n in enumerate(lengths.tolist()):
            before, after = spans[layer, row], moved[layer, row]
            assert torch.equal(before[:n].sort().values, after[:n].sort().values)
            assert not torch.equal(before[:n], after[:n])
            assert torch.equal(before[n:], after[n:])
    same_spans = spans[:1].expand(LAYERS, -1, -1)
    one, other = shuffled(same_spans, lengths, ["a", "b"], seed=0)
    assert not torch.equal(one, other), "layers are shuffled apart"
    alone = shuffled(spans[:, 1:, :20], torch.tensor([20]), ["b"], seed=0)
    assert torch.equal(alone[:, 0], moved[:, 1, :20]), "whatever batch it is in"
    assert not torch.equal(shuffled(spans, lengths, ["a", "b"], seed=1), moved)


def test_a_shuffled_schedule_is_measured_at_its_own_latency(
    model: Transducer, utterances: list[Utterance], tmp_path: Path
) -> None:
    reports = [
        measure([head(model, policy="adaptive")], utterances, tmp_path / str(seed), seed=seed)
        for seed in (0, 1)
    ]
    adaptive, mixed = (by_policy(reports[0])[name] for name in ("adaptive", "shuffled"))
    assert mixed["spans"] != adaptive["spans"], "those at the end of a clip may have to be shorter"
    for layer, other in zip(mixed["mean_span"], adaptive["mean_span"], strict=True):
        assert layer == pytest.approx(other, rel=0.1)
    assert mixed["latency_ms"] != adaptive["latency_ms"]
    assert mixed["latency_ms"] != by_policy(reports[1])["shuffled"]["latency_ms"]
    assert by_policy(reports[1])["adaptive"] == adaptive


def test_batches_do_not_matter(model: Transducer, utterances: list[Utterance], tmp_path: Path) -> None:
    told: list[tuple[float, float, str]] = []
    together = measure([head(model)], utterances, tmp_path / "together", policies=POLICIES)
    apart = measure(
        [head(model)], utterances, tmp_path / "apart", policies=POLICIES, batch_s=0.1,
        progress=lambda *progress: told.append(progress),
    )  # fmt: skip
    assert together == apart
    assert [round(done, 3) for done, *_ in told] == [1.1, 3.0, 5.5]
    assert all(total == pytest.approx(5.5) and note == "ancat-tiny.en-80" for _, total, note in told)


def test_what_has_been_measured_is_not_measured_again(
    model: Transducer, utterances: list[Utterance], tmp_path: Path
) -> None:
    loaded: list[str] = []

    def counted(name: str, weights: str = "1") -> Head:
        return Head(name, weights, {}, lambda: loaded.append(name) or model)  # type: ignore[func-returns-value]

    measure([counted("a")], utterances, tmp_path, policies=["causal"])
    measure([counted("a"), counted("b")], utterances, tmp_path, policies=["causal"])
    assert loaded == ["a", "b"]
    report = measure([counted("a", "2")], utterances, tmp_path, policies=["causal", "chunked:3"])
    assert loaded == ["a", "b", "a"], "other weights of the same name are another model"
    rows = [(row["model"], row["policy"], row["weights"]) for row in report["rows"]]
    assert rows == [("a", "causal", "2"), ("b", "causal", "1"), ("a", "chunked:3", "2")]
    assert json.loads((tmp_path / REPORT).read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == [REPORT]
    with pytest.raises(EvaluationError, match="other clips or another seed: choose another --out"):
        measure([counted("a")], utterances[:2], tmp_path, policies=["causal"])
    (tmp_path / REPORT).write_text("{}")
    with pytest.raises(EvaluationError, match="not what this measurement wrote"):
        measure([counted("a")], utterances, tmp_path, policies=["causal"])


def test_what_cannot_be_measured_is_said_before_work_begins(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    def load() -> Transducer:
        raise AssertionError("too early")

    def run(clips: list[Utterance], policy: str = "causal") -> None:
        measure([Head("a", "1", {}, load)], clips, tmp_path, policies=[policy])

    with pytest.raises(ValueError, match="no policy 'later'"):
        run(utterances, "later")
    with pytest.raises(DatasetError, match="b has no transcript"):
        run([replace(utterances[0], text=None)])
    soundfile.write(tmp_path / "long.wav", np.zeros(30 * SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(DatasetError, match="all clips are longer than 29 s"):
        run([Utterance("long", tmp_path / "long.wav", "")])


def test_a_head_is_asked_for_what_it_was_trained_for(model: Transducer) -> None:
    assert head(model, policy="chunked:9").policies() == ["chunked:9"]
    assert head(model, policy="adaptive").policies() == ["adaptive", "shuffled"]
    assert head(model).policies() == ["adaptive", "shuffled"]


def row_of(model: str, policy: str, errors: list[int], mean_ms: float, **facts: object) -> Row:
    latency = {"mean": mean_ms, "p50": mean_ms, "p90": 2 * mean_ms, "max": 3 * mean_ms}
    return {
        "model": model, "policy": policy, "facts": facts, "wer": sum(errors) / 100, "wer_ci": [0.1, 0.3],
        "latency_ms": latency, "emitting_latency_ms": None, "mean_span": [1.25, 0.5],
        "clips": [[one, 10] for one in errors],
    }  # fmt: skip


def test_the_page_says_whether_shuffling_hurts(tmp_path: Path) -> None:
    few, many = [1, 2] * 5, [3, 4] * 5
    rows = [
        row_of("runs/ancat-320", "adaptive", few, 310.4, target_ms=320.0, hours=7.5),
        row_of("runs/ancat-320", "shuffled", many, 360, target_ms=320.0, hours=7.5),
        row_of("runs/ancat-80", "adaptive", few, 90, target_ms=80.0),
        row_of("runs/ancat-80", "shuffled", few, 100, target_ms=80.0),
        row_of("causal", "causal", many, 12.5),
        row_of("chunks", "chunked:9", few, 172.5),
    ]
    hurts, ties = verdicts(rows)
    assert hurts == (
        "ancat-320: the same spans shuffled in time change WER by +20.0 points (+20.0 to +20.0, 95 %), "
        "so when it waits matters; mean latency goes from 310 to 360 ms."
    )
    assert "ancat-80: the same spans shuffled in time change WER by +0.0 points" in ties
    assert "is not shown" in ties
    header = {"clips": 10, "audio_seconds": 60.0, "left_out": 1}
    page({**header, "rows": rows}).write(tmp_path)
    said = (tmp_path / "report.md").read_text()
    assert (
        "| ancat-320 | adaptive | 320 ms | 7.5 | 15.0% (10.0 to 30.0) | 310 ms | 310 / 621 / 931 ms |" in said
    )
    assert (
        said.index("| causal | causal |") < said.index("| chunks | chunked:9 |") < said.index("| ancat-320 |")
    )
    assert hurts in said
    assert "1 clips were too long" in said
    assert (tmp_path / "lookahead.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_differ_with_what_they_show() -> None:
    row = row_of("a", "adaptive", [1, 2], 300)
    pictures = [
        error_against_latency(rows) for rows in ([], [row], [row, row_of("a", "shuffled", [2, 3], 300)])
    ]
    assert len(set(pictures)) == 3


@pytest.fixture
def folder(model: Transducer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head as training writes it, on a trunk that needs no real weights."""
    folder, trunk = tmp_path / "ancat-tiny.en-40", tmp_path / "ancat-tiny.en"
    facts = {"base": "tiny.en", "trunk": trunk.name, "policy": "adaptive", "target_ms": 40.0, "hours": 0.5}
    save_head(model, folder, facts)
    trunk.mkdir()
    for file in (ADAPTER_FILE, ADAPTER_WEIGHTS):
        (trunk / file).write_text("{}")
    encoder = model.trunk.encoder
    monkeypatch.setattr(checkpoint, "load", lambda name: name)
    monkeypatch.setattr(loading, "transducer", lambda base, trunk, head: load_head(encoder, head))
    return folder


def test_the_command_writes_table_and_picture(
    folder: Path, utterances: list[Utterance], tmp_path: Path
) -> None:
    manifest, out = tmp_path / "clips.jsonl", tmp_path / "out"
    rows = [{"id": one.id, "audio": str(one.audio), "text": one.text} for one in utterances]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    words = ["bench", "lookahead", "--model", str(folder), "--data", str(manifest), "--out", str(out)]
    done = CliRunner().invoke(asr_stream.app, words)
    assert done.exit_code == 0, done.output
    report = json.loads((out / REPORT).read_text())
    assert [(row["policy"], row["facts"]["hours"]) for row in report["rows"]] == [
        ("adaptive", 0.5),
        ("shuffled", 0.5),
    ]
    assert "| ancat-tiny.en-40 | shuffled | 40 ms | 0.5 |" in (out / "report.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == [
        "lookahead.json",
        "lookahead.png",
        "report.html",
        "report.md",
    ]
    more = CliRunner().invoke(asr_stream.app, [*words, "--policy", "causal", "--policy", "chunked:3"])
    assert more.exit_code == 0, more.output
    assert len(json.loads((out / REPORT).read_text())["rows"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lookahead"], "name one --model or more"),
        (["lookahead", "--model", "tiny.en"], "tiny.en is no transducer"),
        (["lookahead", "--model", "HEAD", "--policy", "later"], "no policy 'later': choose adaptive"),
        (["lookahead", "--model", "HEAD", "--policy", "layerwise:1"], "layerwise: and 2 numbers"),
        (["lookahead", "compute"], "ask for it alone"),
        (["lookahead", "--model", "HEAD", "--adapter", "HEAD"], "lookahead takes no --adapter"),
        (["compute", "--policy", "causal"], "--policy is for lookahead"),
        (["compute", "--model", "tiny.en", "--model", "base.en"], "lookahead compares several"),
    ],
)
def test_what_was_asked_wrongly_is_told_in_a_line(
    folder: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    named_words = [str(folder) if word == "HEAD" else word for word in words]
    done = CliRunner().invoke(asr_stream.app, ["bench", *named_words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""The `asr-stream` command: what its users type, and the line that they read when it cannot be done.

tiny.en without an adapter hears; it streams badly, so only finals, which the second pass makes, are compared.
"""

import copy
import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
from typer.testing import CliRunner, Result

import asr_stream
from adapters.shipped import AdapterError
from asr.audio import read_audio, stream_audio
from asr.checkpoint import Whisper
from asr.transducer.model import save_head
from eval.wer import count_edits
from streaming.session import SessionOptions
from tests.streaming.transducers import random_transducer

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
CLIP = SAMPLES / "austen-0880.flac"  # 3 s: "He was not an ill-disposed young man,"
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def engine():
    built = asr_stream.build_engine("tiny.en", slots=1, adapter="none", final_pass_thread=False)
    yield built
    built.close()


@pytest.fixture
def cli() -> Cli:
    """Runs a command in this process."""

    def run(*words: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(asr_stream.app, [str(word) for word in words], input=stdin)

    return run


@pytest.fixture
def hearing(cli: Cli, engine, monkeypatch) -> Cli:
    """Runs a command that gets the module's engine, not one of its own."""
    monkeypatch.setattr(asr_stream, "build_engine", lambda *_, **__: engine)
    return cli


def errors(text: str, heard: str) -> float:
    edits = count_edits(text, heard)
    return (edits.substitutions + edits.deletions + edits.insertions) / edits.reference_words


def test_a_recording_is_transcribed_line_by_line(hearing):
    done = hearing("transcribe", SAMPLES / "jfk.wav")
    assert done.exit_code == 0, done.stderr
    assert (
        errors(json.loads((SAMPLES / "manifest.jsonl").read_text().splitlines()[0])["text"], done.stdout)
        < 0.1
    )
    assert done.stderr == ""


@pytest.mark.parametrize("form", ["json", "srt", "vtt"])
def test_formats(hearing, tmp_path: Path, form: str):
    out = tmp_path / f"out.{form}"
    done = hearing("transcribe", CLIP, "--format", form, "--out", out)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    written = out.read_text()
    assert "young man" in written
    assert {"json": '"utterances"', "srt": "1\n00:00:0", "vtt": "WEBVTT\n\n00:00:0"}[form] in written
    assert list(tmp_path.iterdir()) == [out]


def test_beam_prompt_and_hotwords_reach_the_session(hearing, engine, monkeypatch, tmp_path: Path):
    opened, open_ = [], engine.open
    monkeypatch.setattr(
        engine, "open", lambda options, **rest: opened.append(options) or open_(options, **rest)
    )
    (tmp_path / "words.txt").write_text("Dashwood\nJohn Dashwood\n")
    done = hearing(
        "transcribe", CLIP, "--beam", 2, "--prompt", "A novel.", "--hotwords", f"@{tmp_path / 'words.txt'}"
    )
    assert done.exit_code == 0, done.stderr
    assert "young man" in done.stdout
    (options,) = opened
    assert (options.beam, options.prompt, options.hotwords) == (2, "A novel.", ("Dashwood", "John Dashwood"))


def test_raw_pcm_comes_through_stdin(hearing):
    samples = (read_audio(CLIP) * 32767).astype("<i2")
    stereo_8k = np.repeat(samples[::2, None], 2, axis=1)
    done = hearing("transcribe", "-", "--rate", 8000, "--channels", 2, stdin=stereo_8k.tobytes())
    assert done.exit_code == 0, done.stderr
    assert "young man" in done.stdout


@pytest.mark.parametrize(
    ("level", "says"),
    [
        (0, ": there is no sound in it, or its channels cancel each other"),
        (33, ": its loudest sample is 60 dB below full scale, perhaps too quiet to be heard: make it louder"),
        (3277, ""),
    ],
)
def test_silence_is_said_to_be_silent(hearing, level, says):
    hum = (level * np.sin(2 * np.pi * 50 / 16_000 * np.arange(32_000))).round().astype("<i2")
    done = hearing("transcribe", "-", stdin=hum.tobytes())
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"no speech was recognised{says}\n")


@pytest.mark.parametrize(
    "make",
    [
        lambda clip: (np.repeat(clip[:, None], 8, axis=1), 16_000),
        lambda clip: (np.repeat(clip, 12), 192_000),
        lambda clip: (np.where(np.arange(len(clip)) % 4000 == 7, np.nan, clip), 16_000),
    ],
    ids=["8 channels", "192 kHz", "some NaN"],
)
def test_odd_audio_is_heard(hearing, tmp_path: Path, make):
    samples, rate = make(read_audio(CLIP))
    soundfile.write(tmp_path / "odd.wav", samples, rate, subtype="FLOAT")
    done = hearing("transcribe", tmp_path / "odd.wav")
    assert done.exit_code == 0, done.stderr
    assert "young man" in done.stdout


def test_a_truncated_file_is_heard_as_far_as_it_goes(hearing, tmp_path: Path):
    cut = tmp_path / "cut.flac"
    cut.write_bytes(CLIP.read_bytes()[:30_000])
    done = hearing("transcribe", cut)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("He was")


def test_an_interrupted_transcription_keeps_what_was_heard(hearing, tmp_path: Path, monkeypatch):
    def interrupted(*args):
        for number, samples in enumerate(stream_audio(*args)):
            if number == 15:  # after 4.5 s
                signal.raise_signal(signal.SIGINT)
            yield samples

    monkeypatch.setattr("asr.audio.stream_audio", interrupted)
    done = hearing("transcribe", SAMPLES / "jfk.wav", "--format", "srt", "--out", tmp_path / "so-far.srt")
    assert done.exit_code == 130
    assert done.stderr == f"interrupted: what was said in the first 4.8 s is in {tmp_path / 'so-far.srt'}\n"
    written = (tmp_path / "so-far.srt").read_text()
    assert "fellow" in written
    assert "country" not in written


def write(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def only_nan(folder: Path) -> Path:
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    return folder / "nan.wav"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.wav", "does not exist"),
        (lambda folder: folder, "is a folder"),
        (write("empty.wav", b""), "is empty"),
        (write("text.wav", b"hello, I am no audio" * 99), "is not audio of a known kind"),
        (write("headless.wav", CLIP.read_bytes()[3000:]), "is not audio of a known kind"),
        (only_nan, "holds no audio: 16000 samples were not numbers and became silence"),
    ],
)
def test_bad_audio_is_one_line_and_exit_code_2(hearing, tmp_path: Path, make, message):
    assert_refused(hearing("transcribe", make(tmp_path)), message)


def test_the_defaults_of_commands_are_those_of_sessions() -> None:
    """They stand there as numbers, so that help need not import a model."""
    commands = typer.main.get_command(asr_stream.app)
    for name in ("transcribe", "mic", "bench"):
        given = {p.name: p.default for p in commands.get_command(None, name).params}
        own = SessionOptions()
        assert (given["chunk_ms"], given["delay_ms"], given["beam"]) == (own.chunk_ms, own.delay_ms, own.beam)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("transcribe", CLIP, "--model", "huge.xx"), "name one of tiny.en, base.en, or a checkpoint's path"),
        (
            ("transcribe", CLIP, "--model", "huge.xx"),
            "ancat-tiny.en-80, or the folder of its head (see `asr-stream",
        ),
        (("transcribe", CLIP, "--model", "ancat-tiny.en-9"), "no transducer ancat-tiny.en-9 comes with"),
        (("transcribe", CLIP, "--model", CLIP), "comes with the project (it has those of: tiny.en, base.en)"),
        (("transcribe", CLIP, "--model", CLIP, "--adapter", "none"), "neither an OpenAI checkpoint"),
        (("transcribe", CLIP, "--chunk-ms", 310), "chunk_ms must be 100 to 1000 in steps of 20, not 310"),
        (("transcribe", "-", "--channels", 9), "9 channels are out of range"),
        (("transcribe", CLIP, "--beam", 9), "beam must be 1 to 8, not 9"),
        (("transcribe", CLIP, "--final-pass", "rescore"), "ask for a beam of 2 to 8"),
        (
            ("transcribe", CLIP, "--final-pass", "rescore", "--beam", 4),
            "tiny.en cannot rescore utterances: final_pass must be one of full, none",
        ),
        (("transcribe", CLIP, "--device", "gpu"), "no device is called 'gpu': use auto, cpu, cuda or cuda:N"),
        (("transcribe", CLIP, "--hotwords", "Ada, ?"), "a hotword must have a letter or digit, not '?'"),
        (
            ("transcribe", CLIP, "--hotwords", "@/no/such/file"),
            "hotwords @/no/such/file: /no/such/file cannot be read (No such file or directory): name a file with",
        ),
        (("transcribe", ""), "the file's name is empty: name a recording, or give - for raw PCM from stdin"),
        (("transcribe", CLIP, "--out", ""), "--out names no file: give one, as in --out words.txt"),
        (
            ("transcribe", CLIP, "--model", ""),
            "the model's name is empty: name one of `asr-stream models list`",
        ),
        (
            ("transcribe", CLIP, "--adapter", ""),
            "the adapter's name is empty: name its folder, or leave it out",
        ),
        (
            ("transcribe", CLIP, "--rate", 8000),
            "--rate is of raw PCM only: leave it out, or give - as the file",
        ),
        (("transcribe", CLIP, "--channels", 2, "--encoding", "s16le"), "--encoding is of raw PCM only"),
        (("transcribe", "-", "--rate", 1), "a sample rate of 1 Hz is out of range"),
        (
            ("transcribe", CLIP, "--out", "/no/such/folder/out.txt"),
            "there is no folder /no/such/folder: make it first",
        ),
        (("transcribe", CLIP, "--out", SAMPLES), "is a folder: name a file in it"),
        (("serve", "--port", 99_999), "port must be 0 to 65535, not 99999"),
        (("serve", "--log-level", "loud"), "log_level must be one of debug, info, warning, error, not loud"),
        (("serve", "--final-pass", "rescore"), "ask for a beam of 2 to 8"),
        (("serve", "--final-pass", "rescore", "--beam", 2), "tiny.en cannot rescore utterances"),
        (("serve", "--device", "gpu"), "device: no device is called 'gpu'"),
        (("serve", "--api-key-file", "/no/keys"), "api_key_file: there is no file /no/keys"),
        (("serve", "--tls-cert", "/no/cert", "--tls-key", CLIP), "tls_cert: there is no file /no/cert"),
        (("serve", "--tls-cert", CLIP, "--tls-key", CLIP), f"tls_cert {CLIP} and tls_key {CLIP} must be"),
        (("serve", "--config", "/no/such.toml"), "/no/such.toml: No such file"),
        (("serve", "--config", CLIP), f"{CLIP}: "),
        (("mic", "--url", "http://nowhere", "--list-devices"), ""),
        (("eval", "/no/such/data"), "no such file or folder"),
        (("eval", SAMPLES / "README.md"), "bad JSON"),
        (("mic", "--url", "ws://nowhere", "--threads", 1), "--threads is for a model here"),
        (("mic", "--url", "ws://nowhere", "--model-device", "cpu"), "--model-device is for a model here"),
        (("eval",), "say what to evaluate"),
        (("eval", SAMPLES, "--chunk-ms", ","), "--chunk-ms takes a number"),
        (("eval", SAMPLES, "--realtime", "--batch", 2), "--realtime and --batch exclude each other"),
        (
            ("eval", SAMPLES, "--compare", "/no/a.json", "/no/b.json"),
            "--compare takes two reports and no data",
        ),
        (("eval", SAMPLES, "--chunk-ms", "300;500"), "--chunk-ms takes a number"),
        (("eval", SAMPLES, "--chunk-ms", "300,310"), "chunk_ms must be"),
        (("eval", SAMPLES, "--baselines", "online"), "no baseline is called 'online'"),
        (("eval", SAMPLES, "--download"), "--download needs --split"),
        (("eval", "--compare", "/no/a.json", "/no/b.json"), "name two report.json"),
        (("align", SAMPLES / "README.md", "--out", CLIP / "x"), f"{CLIP} is a file: name a folder"),
        (("eval", SAMPLES / "manifest.jsonl", "--out", CLIP), f"{CLIP} is a file: name a folder"),
        (("bench", "--out", CLIP), f"{CLIP} is a file: name a folder"),
        (("bench", "lookahead", "--model", "x", "--out", CLIP), f"{CLIP} is a file: name a folder"),
        (("train", "ancat", SAMPLES / "manifest.jsonl", "--out", CLIP), f"{CLIP} is a file: name a folder"),
        (("train", "careless", "--data", SAMPLES, "--out", "/tmp"), "aligned.jsonl: No such file"),
        (
            ("models", "path", "huge.xx"),
            "or a transducer, ancat-tiny.en-320, ancat-tiny.en-80, or the folder",
        ),
        (("bench", "--chunk-ms", 10), "chunk_ms must be"),
        (("demo", "--clip", "/no/such.wav"), "/no/such.wav does not exist"),
        (("demo", "--model", "huge.xx"), "huge.xx is neither a file nor a base model"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(cli, monkeypatch, words, message):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert_refused(cli(*words), message)


def assert_refused(done: Result, message: str) -> None:
    assert done.exit_code == 2, (done.stderr, done.exception)
    assert done.stdout == ""
    assert done.stderr.startswith("asr-stream: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_corrupt_weights_are_one_line(cli, tmp_path: Path):
    torch.save({"dims": {}, "model_state_dict": {}}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:500])
    assert_refused(
        cli("transcribe", CLIP, "--model", tmp_path / "cut.pt", "--adapter", "none"), "truncated or damaged"
    )


def test_an_adapter_that_is_not_there_is_named(cli, tmp_path: Path):
    with pytest.raises(AdapterError, match="no adapter in"):
        asr_stream.build_engine("tiny.en", slots=1, adapter=str(tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(hearing):
    assert_refused(
        hearing("transcribe", CLIP, "--format", "json", "--out", "/dev/full"),
        "--out /dev/full: No space left on device: free some, or name another place",
    )


def test_mistakes_of_ours_are_not_hidden(cli, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(asr_stream, "build_engine", broken)
    assert isinstance(cli("transcribe", CLIP).exception, ZeroDivisionError)


def test_debug_shows_where_an_error_came_from(cli):
    assert isinstance(cli("--debug", "transcribe", "/no/such.wav").exception, ValueError)


def test_models_are_listed_with_what_is_here(cli):
    listed = cli("models", "list").stdout
    assert "tiny.en" in listed
    assert "base.en" in listed
    assert "this project, on tiny.en" in listed  # nothing is folded where there is no terminal
    path = Path(cli("models", "path").stdout.strip())
    assert str(path) in listed
    assert path.name == "tiny.en.pt"
    assert cli("models", "verify").stdout == f"{path} is right\n"
    assert cli("models", "fetch").stdout == f"{path}\n"


def test_evaluation_prints_its_table_and_goes_on(hearing, tmp_path: Path):
    clip = next(line for line in (SAMPLES / "manifest.jsonl").read_text().splitlines() if CLIP.name in line)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(json.loads(clip) | {"audio": str(CLIP)}))
    run = tmp_path / "run"
    words = ("eval", manifest, "--out", run, "--final-pass", "none", "--chunk-ms", 500)
    first = hearing(*words)
    assert first.exit_code == 0, (first.stderr, first.exception)
    before = (run / "report.json").read_bytes()
    assert json.loads(before)["word_times"] == "the reference aligned by tiny.en (1)"
    done = hearing(*words)
    assert done.stdout == first.stdout
    assert "| asr-stream, 500 ms | " in done.stdout
    assert (run / "report.json").read_bytes() == before
    assert {path.name for path in run.glob("report.*")} == {"report.html", "report.json", "report.md"}
    assert_refused(hearing(*words[:-1], 300), "holds a run with chunk_ms 500")

    same = hearing("eval", "--compare", run / "report.json", run / "report.json")
    assert "1 common utterances" in same.stdout, same.exception


def test_an_interrupted_evaluation_says_how_to_go_on(hearing, tmp_path: Path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.sweep.work", interrupt)
    done = hearing("eval", SAMPLES / "manifest.jsonl", "--out", tmp_path / "run")
    assert done.exit_code == 130
    assert "interrupted: 0 of " in done.stderr
    assert "the same command goes on from there" in done.stderr


@pytest.mark.parametrize("command", [("transcribe", CLIP), ("eval", SAMPLES / "manifest.jsonl")])
def test_a_command_that_is_interrupted_before_its_work_says_so(cli, command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("asr_stream.decides_when_to_wait", interrupt)
    done = cli(*command)
    assert (done.exit_code, done.stderr) == (130, "asr-stream: interrupted\n")


def test_alignment_and_training_go_on_where_they_stopped(cli, make_tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("asr.checkpoint.load", lambda *_, **__: make_tiny(0))
    manifest = tmp_path / "manifest.jsonl"
    rows = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text().splitlines()]
    manifest.write_text(
        "".join(json.dumps(row | {"audio": str(SAMPLES / row["audio"])}) + "\n" for row in rows[2:4])
    )
    done = cli("align", manifest, "--out", tmp_path / "aligned", "--batch", 2)
    assert (done.exit_code, done.stdout) == (0, f"2 clips are in {tmp_path / 'aligned'}\n"), done.exception

    from adapters.train import Trainer

    train_step = Trainer._train_step

    def interrupted(trainer: Trainer, batch):
        signal.raise_signal(signal.SIGINT)
        return train_step(trainer, batch)

    run = tmp_path / "run"
    small = ("--batch-seconds", 10, "--encoder-rank", 2, "--decoder-rank", 2)
    words = ("train", "careless", "--data", tmp_path / "aligned", "--out", run, "--steps", 2, *small)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        assert cli(*words).exit_code == 130
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 1
    done = cli(*words)
    assert (done.exit_code, done.stdout) == (0, f"the adapter is in {run / 'adapter'}\n"), done.exception
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]


@pytest.fixture(scope="module")
def head(tiny_en: Whisper, tmp_path_factory) -> Path:
    """The folder of a transducer that says nonsense, with its trunk beside it."""
    from adapters import lora, merged

    folder = tmp_path_factory.mktemp("heads")
    trunk = lora.attach(copy.deepcopy(tiny_en), encoder_rank=2, decoder_rank=0)
    lora.save(trunk, folder / "ancat-tiny.en", kind=merged.TRUNK)
    facts = {"base": "tiny.en", "trunk": "ancat-tiny.en"}
    save_head(random_transducer(tiny_en, 0), folder / "ancat-tiny.en-320", facts)
    return folder / "ancat-tiny.en-320"


def test_a_transducer_is_a_model_like_any_other(cli, head: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapters.shipped.WEIGHTS", head.parent)
    done = cli("transcribe", CLIP, "--model", head.name, "--delay-ms", 200)
    assert done.exit_code == 0, done.exception
    assert "young man" in done.stdout  # the second pass
    assert (
        done.stderr == f"{head.name} has learnt when to wait: the delay that was asked for does not apply\n"
    )
    assert head.name in cli("models", "list").stdout
    assert Path(cli("models", "path", head.name).stdout.strip()).name == "tiny.en.pt"


def test_a_transducer_is_evaluated_like_any_other(cli, head: Path, tmp_path: Path):
    clip = next(line for line in (SAMPLES / "manifest.jsonl").read_text().splitlines() if CLIP.name in line)
    manifest, run = tmp_path / "manifest.jsonl", tmp_path / "run"
    manifest.write_text(json.dumps(json.loads(clip) | {"audio": str(CLIP)}))
    words = ("eval", manifest, "--out", run, "--final-pass", "none", "--jobs", 1, "--baselines", "offline")
    done = cli(*words, "--model", "tiny.en", "--adapter", head)
    assert (done.exit_code, done.stderr) == (0, ""), done.exception
    report = json.loads((run / "report.json").read_text())
    assert report["policy"].startswith(f"{head.name} ")
    assert (report["delay_ms"], report["final_pass"]) == (0, "none")
    assert report["word_times"] == "the reference aligned by tiny.en (1)"
    assert [one["model"] for one in report["baselines"].values()] == ["tiny.en"]
    latency = report["schedule_latency_ms"]["frames"]
    assert 12.5 <= latency["p50"] <= latency["p90"] <= latency["max"]
    assert "schedule, mean / 90 %" in done.stdout
    assert "schedule_latency_ms" not in report["baselines"]["offline"]


@pytest.mark.parametrize(
    "command", [("transcribe", CLIP), ("serve",), ("eval", SAMPLES / "manifest.jsonl"), ("bench", "long")]
)
def test_a_gpu_that_is_not_there_is_asked_for(cli, command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = cli(*command, "--device", "cuda:0")
    assert done.exit_code == 2
    assert done.stderr.startswith("asr-stream: device cuda:0: ")
    assert done.stderr.endswith("`cpu` and `auto` work here\n") and done.stderr.count("\n") == 1


def test_a_server_tells_its_clients_that_there_is_no_delay(cli, head: Path, monkeypatch):
    served = []
    monkeypatch.setattr("server.app.serve", lambda settings, engine: served.append(settings))
    monkeypatch.setattr(asr_stream, "build_engine", lambda *_, **__: None)
    monkeypatch.setenv("ASR_STREAM_MODEL", str(head))
    assert "does not apply" not in cli("serve").stderr
    assert "does not apply" in cli("serve", "--delay-ms", 200).stderr
    assert [settings.delay_ms for settings in served] == [None, None]


def test_the_demonstration_runs_as_a_user_runs_it():
    command = [sys.executable, ROOT / "asr_stream.py", "demo", "--adapter", "none", "--clip", CLIP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "young man" in done.stdout
    assert "real-time factor" in done.stdout


def test_a_misspelt_command_is_answered_with_what_is_near(cli):
    done = cli("srve")
    assert done.exit_code == 2
    assert "Did you mean 'serve'?" in done.stderr


def test_help_names_every_command():
    done = subprocess.run(
        [sys.executable, ROOT / "asr_stream.py", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    named = set(re.findall(r"^\W*(\w+)  ", done.stdout, re.MULTILINE))
    assert named >= {"transcribe", "serve", "mic", "eval", "align", "train", "models", "bench", "demo"}


def test_it_tells_its_version(cli: Cli):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cli("--version").stdout == f"asr-stream {project['version']}\n"

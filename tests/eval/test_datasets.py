"""Where utterances come from: LibriSpeech trees (as torchaudio reads them), manifests, mistakes in them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torchaudio.datasets import LIBRISPEECH

from eval.datasets import DatasetError, TimedWord, Utterance, download, load

TEXTS = {
    "test-clean/84/121123/84-121123-0000": "GO DO YOU HEAR",
    "test-clean/84/121123/84-121123-0001": "BUT IN LESS THAN FIVE MINUTES",
    "test-clean/26/495/26-495-0000": "DEAR SIR",
    "test-other/367/130732/367-130732-0000": "LOBSTERS AND LOBSTERS",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small LibriSpeech: the folder above `LibriSpeech`."""
    for path, text in TEXTS.items():
        audio = tmp_path / "LibriSpeech" / f"{path}.flac"
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, np.zeros(160, dtype=np.float32), 16_000)
        speaker, chapter, _ = audio.stem.split("-")
        with (audio.parent / f"{speaker}-{chapter}.trans.txt").open("a", encoding="utf-8") as transcripts:
            transcripts.write(f"{audio.stem} {text}\n")
    return tmp_path


def manifest(folder: Path, *rows: object) -> Path:
    """A manifest beside an (empty) a.wav; rows that are strings go in as they are."""
    (folder / "a.wav").touch()
    path = folder / "manifest.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_tree_is_read_as_torchaudio_reads_it(tree: Path) -> None:
    theirs = LIBRISPEECH(tree, "test-clean")
    expected = []
    for i in range(len(theirs)):
        path, _, text, speaker, chapter, number = theirs.get_metadata(i)
        audio = tree / "LibriSpeech" / path
        expected.append(
            Utterance(
                f"{speaker}-{chapter}-{number:04}",
                audio,
                text,
                f"ls-{speaker}",
                None,
                "librispeech/test-clean",
            )
        )
    assert load(tree, "test-clean") == sorted(expected, key=lambda one: one.audio)


@pytest.mark.parametrize("level", [".", "LibriSpeech", "LibriSpeech/test-clean"])
def test_a_tree_may_be_given_at_any_level(tree: Path, level: str) -> None:
    ids = [one.id for one in load(tree / level, "test-clean")]
    assert ids == ["26-495-0000", "84-121123-0000", "84-121123-0001"]
    assert [one.corpus for one in load(tree / level)][:3] == ["librispeech/test-clean"] * 3


def test_without_a_split_all_of_the_tree_is_read(tree: Path) -> None:
    assert len(load(tree)) == len(TEXTS)


def test_a_manifest_says_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/b.wav").touch()
    path = manifest(
        tmp_path,
        {
            "audio": "a.wav",
            "id": 7,
            "text": "hi you",
            "speaker": "ann",
            "words": [["hi", 0.5], ["you", 0.6, 1.0]],
        },
        "",
        {"audio": "clips/b.wav", "text": None, "corpus": "made", "seconds": 1.5},
    )
    words = (TimedWord("hi", None, 0.5), TimedWord("you", 0.6, 1.0))
    assert load(path) == [
        Utterance("7", tmp_path / "a.wav", "hi you", "ann", words, None),
        Utterance("clips/b", tmp_path / "clips/b.wav", None, None, None, "made"),
    ]


def test_word_times_may_come_from_a_file_of_their_own(tree: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text(
        '{"id": "26-495-0000", "words": [["dear", 0.3], ["sir", 0.8]]}\n{"id": "x", "words": []}\n'
    )
    words = {one.id: one.words for one in load(tree, "test-clean", labels=labels)}
    assert words["26-495-0000"] == (TimedWord("dear", None, 0.3), TimedWord("sir", None, 0.8))
    assert words["84-121123-0000"] is None
    labels.write_text('{"id": "x", "words": []}\n')
    with pytest.raises(DatasetError, match=r"labels\.jsonl: none of its ids"):
        load(tree, "test-clean", labels=labels)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ['{"audio": '],
            r'manifest.jsonl:1: bad JSON: .* at column \d+; a line looks like {"audio": "clips/1.wav", "text": "what',
        ),
        (['{"audio": "a.wav"}', "[1]"], "manifest.jsonl:2: a JSON object is needed, not list"),
        ([{"text": "hi"}], 'manifest.jsonl:1: no "audio"'),
        ([{"audio": "b.wav"}], "manifest.jsonl:1: no audio file .*b.wav"),
        ([{"audio": "a.wav", "text": ["hi"]}], 'manifest.jsonl:1: "text" must be a string, not \\["hi"\\]'),
        (
            [{"audio": "a.wav"}, {"audio": "a.wav", "text": 7}],
            'manifest.jsonl:2: "text" must be a string, not 7',
        ),
        ([{"audio": "a.wav", "words": [["hi"]]}], 'manifest.jsonl:1: "words" must be'),
        ([{"audio": "a.wav", "words": [["hi", "soon"]]}], 'manifest.jsonl:1: "words" must be'),
        ([{"audio": "a.wav", "words": 3}], 'manifest.jsonl:1: "words" must be'),
        ([{"audio": "a.wav"}, {"audio": "a.wav"}], "two utterances are called 'a'"),
        ([], "no utterances"),
    ],
)
def test_a_bad_manifest_is_one_clear_line(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load(manifest(tmp_path, *rows))
    assert "\n" not in str(caught.value)


def test_bad_paths_and_splits_are_one_clear_line(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no split 'dev-clean'; there are test-clean, test-other"):
        load(tree, "dev-clean")
    with pytest.raises(DatasetError, match="this is split 'test-other', not 'test-clean'"):
        load(tree / "LibriSpeech/test-other", "test-clean")
    with pytest.raises(DatasetError, match="has no split"):
        load(manifest(tmp_path, {"audio": "a.wav"}), "test-clean")
    with pytest.raises(DatasetError, match="neither a manifest nor a LibriSpeech tree"):
        load(tree / "LibriSpeech/test-other/367/130732")
    with pytest.raises(DatasetError, match=r"a\.wav: not a text file|a\.wav: no utterances"):
        load(tmp_path / "a.wav")
    with pytest.raises(DatasetError, match=r"labels\.jsonl: no such file"):
        load(tree, labels=tmp_path / "labels.jsonl")


def test_where_nothing_is_the_error_says_what_works(tmp_path: Path) -> None:
    data, empty = tmp_path / "LibriSpeech", tmp_path / "empty"
    empty.mkdir()
    for nothing, split in ((data, "test-other"), (empty, None)):
        with pytest.raises(DatasetError) as caught:
            load(nothing, split)
        command = f"`asr-stream eval {nothing} --split {split or 'test-clean'} --download`"
        assert command in str(caught.value)
        assert "samples/manifest.jsonl works at once" in str(caught.value)
    with pytest.raises(
        DatasetError, match=r"no such file or folder: check the path; samples/manifest\.jsonl"
    ):
        load(tmp_path / "mine.jsonl")
    path = manifest(tmp_path, {"audio": "a.wav"})
    with pytest.raises(DatasetError, match=f"name the manifest in it, {path}$"):
        load(tmp_path)


def test_audio_without_a_transcript_is_an_error(tree: Path) -> None:
    (tree / "LibriSpeech/test-clean/26/495/26-495.trans.txt").write_text("26-495-0009 SOMETHING ELSE\n")
    with pytest.raises(DatasetError, match=r"26-495-0000.flac: no transcript"):
        load(tree, "test-clean")


def test_a_split_is_downloaded_by_torchaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "torchaudio.datasets.librispeech._download_librispeech", lambda root, url: asked.append((root, url))
    )
    download(tmp_path / "data", "test-clean")
    assert asked == [(str(tmp_path / "data"), "test-clean")]


def test_without_network_or_with_a_wrong_split_a_download_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: str, url: str) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchaudio.datasets.librispeech._download_librispeech", fail)
    with pytest.raises(DatasetError, match=r"Name or service not known.*unpack test-clean.tar.gz"):
        download(tmp_path, "test-clean")
    with pytest.raises(DatasetError, match="no split 'test-dirty'"):
        download(tmp_path, "test-dirty")

"""Speech with transcripts, from a LibriSpeech tree or a JSON-lines manifest: files are named, not opened."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MANIFEST_LINE = '{"audio": "clips/1.wav", "text": "what is said"}'  # as an example
LABELS_LINE = '{"id": "1", "words": [["what", 0.2], ["is", 0.4], ["said", 0.8]]}'


class DatasetError(ValueError):
    """Data that cannot be evaluated; the message is one line and says where."""


@dataclass(frozen=True)
class TimedWord:
    """A word of the reference and when it was spoken, in seconds from the start of its file."""

    word: str
    start_s: float | None  # None where the alignment knows only ends
    end_s: float


@dataclass(frozen=True)
class Utterance:
    """One audio file and what is known about it."""

    id: str
    audio: Path
    text: str | None = None  # None: no transcript; "": nothing is said
    speaker: str | None = None
    words: tuple[TimedWord, ...] | None = None  # None: not aligned
    corpus: str | None = None


def load(path: Path | str, split: str | None = None, *, labels: Path | str | None = None) -> list[Utterance]:
    """The utterances under `path`, sorted by id for a tree, in the file's order for a manifest.

    path: a JSON-lines manifest (`audio` relative to it; optional `id`, `text`, `speaker`, `corpus`, `words`),
    or a LibriSpeech tree: the folder above `LibriSpeech`, that folder, or one split.
    split: which split of a tree (all of them by default).
    labels: JSON lines {"id", "words"} with word times for some of the utterances, [word, end s] or
    [word, start s, end s].
    Raises DatasetError.
    """
    path = Path(path)
    if path.is_dir():
        utterances = list(_librispeech(path, split))
    elif path.is_file():
        if split is not None:
            raise DatasetError(f"{path}: a manifest has no split {split!r}; leave --split out")
        utterances = list(_manifest(path))
    else:
        raise DatasetError(f"{path}: no such file or folder: {_advice(path, split)}")
    if not utterances:
        raise DatasetError(f"{path}: no utterances in it")
    _check_unique(path, utterances)
    return utterances if labels is None else _with_labels(utterances, Path(labels))


def download(root: Path | str, split: str) -> None:
    """Gets a split of LibriSpeech into `root`, with torchaudio's own downloader, unless it is there.

    Raises DatasetError where there is no such split, no network or no place for it.
    """
    from torchaudio.datasets import LIBRISPEECH  # imports torch: others read manifests without

    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    try:
        LIBRISPEECH(root, split, download=True)
    except ValueError as error:
        raise DatasetError(
            f"LibriSpeech has no split {split!r}; test-clean and test-other are usual"
        ) from error
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"LibriSpeech {split} cannot be downloaded ({error}): "
            f"check the network, or unpack {split}.tar.gz from openslr.org/12 into {root}"
        ) from error


def _advice(path: Path, split: str | None) -> str:
    """What to do where there is no data."""
    at_once = "samples/manifest.jsonl works at once"
    if path.suffix:
        return f"check the path; {at_once}"
    return f"`asr-stream eval {path} --split {split or 'test-clean'} --download` gets LibriSpeech; {at_once}"


def _librispeech(path: Path, split: str | None) -> Iterator[Utterance]:
    for folder in _split_folders(path, split):
        corpus = f"librispeech/{folder.name}"
        for chapter in sorted({audio.parent for audio in folder.glob("*/*/*.flac")}):
            texts = _transcripts(chapter)
            for audio in sorted(chapter.glob("*.flac")):
                if audio.stem not in texts:
                    raise DatasetError(f"{audio}: no transcript in {chapter}/*.trans.txt")
                yield Utterance(
                    audio.stem, audio, texts[audio.stem], f"ls-{chapter.parent.name}", None, corpus
                )


def _split_folders(path: Path, split: str | None) -> list[Path]:
    """The folders <split>/ that hold <speaker>/<chapter>/, whichever level of the tree `path` is."""
    if any(path.glob("*/*/*.trans.txt")):
        if split not in (None, path.name):
            raise DatasetError(f"{path}: this is split {path.name!r}, not {split!r}")
        return [path]
    root = path / "LibriSpeech" if (path / "LibriSpeech").is_dir() else path
    splits = sorted({transcripts.parents[2] for transcripts in root.glob("*/*/*/*.trans.txt")})
    if not splits:
        if manifests := sorted(path.glob("*.jsonl")):
            raise DatasetError(f"{path}: this is a folder: name the manifest in it, {manifests[0]}")
        raise DatasetError(
            f"{path}: neither a manifest nor a LibriSpeech tree (no <split>/*/*/*.trans.txt): {_advice(path, split)}"
        )
    chosen = [folder for folder in splits if split in (None, folder.name)]
    if not chosen:
        raise DatasetError(
            f"{root}: no split {split!r}; there are {', '.join(folder.name for folder in splits)}"
        )
    return chosen


def _transcripts(chapter: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for file in sorted(chapter.glob("*.trans.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            utterance_id, _, text = line.strip().partition(" ")
            texts[utterance_id] = text
    return texts


def _manifest(path: Path) -> Iterator[Utterance]:
    for where, row in json_lines(path, MANIFEST_LINE):
        if not isinstance(row.get("audio"), str):
            raise DatasetError(f'{where}: no "audio" (a path relative to the manifest)')
        audio = path.parent / row["audio"]
        if not audio.is_file():
            raise DatasetError(f"{where}: no audio file {audio}")
        yield Utterance(
            id=_name(where, row, "id") or Path(row["audio"]).with_suffix("").as_posix(),
            audio=audio,
            text=_text(where, row, "text"),
            speaker=_name(where, row, "speaker"),
            words=None if row.get("words") is None else _words(where, row["words"]),
            corpus=_text(where, row, "corpus"),
        )


def _with_labels(utterances: Sequence[Utterance], path: Path) -> list[Utterance]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    words: dict[str, tuple[TimedWord, ...]] = {}
    for where, row in json_lines(path, LABELS_LINE):
        utterance_id = _name(where, row, "id")
        if utterance_id is None or "words" not in row:
            raise DatasetError(f'{where}: needs "id" and "words"')
        words[utterance_id] = _words(where, row["words"])
    if not any(one.id in words for one in utterances):
        raise DatasetError(f"{path}: none of its ids is one of the data's ids, such as {utterances[0].id!r}")
    return [replace(one, words=words.get(one.id, one.words)) for one in utterances]


def json_lines(path: Path, example: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not blank; where one is none, people are shown the `example`."""
    advice = f"; a line looks like {example}" if example else ""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a text file in UTF-8; a manifest is JSON lines") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{where}: bad JSON: {error.msg} at column {error.colno}{advice}") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: a JSON object is needed, not {type(row).__name__}{advice}")
        yield where, row


def _text(where: str, row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    raise DatasetError(f'{where}: "{key}" must be a string, not {json.dumps(value)[:20]}')


def _name(where: str, row: dict[str, Any], key: str) -> str | None:
    """Likewise, but ids and speakers are often numbers."""
    value = row.get(key)
    return str(value) if isinstance(value, int) else _text(where, row, key)


def _words(where: str, rows: Any) -> tuple[TimedWord, ...]:
    try:
        return tuple(_word(*row) for row in rows)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f'{where}: "words" must be [word, end s] or [word, start s, end s] each'
        ) from error


def _word(word: str, *times: float) -> TimedWord:
    match [float(time) for time in times]:
        case [end_s]:
            return TimedWord(str(word), None, end_s)
        case [start_s, end_s]:
            return TimedWord(str(word), start_s, end_s)
    raise ValueError("one or two times are needed")


def _check_unique(path: Path, utterances: Sequence[Utterance]) -> None:
    seen: set[str] = set()
    for one in utterances:
        if one.id in seen:
            raise DatasetError(f"{path}: two utterances are called {one.id!r}")
        seen.add(one.id)

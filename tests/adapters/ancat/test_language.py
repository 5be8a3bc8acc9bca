"""From plain texts to a head that weighs them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import asr_stream
from adapters.ancat.language import learn_language, read_texts, sentences
from adapters.shipped import WEIGHTS, AdapterError, find
from asr.transducer.language import LANGUAGE, LANGUAGE_CONFIG, Weights
from asr.transducer.model import HEAD_CONFIG, PIECES
from asr.transducer.pieces import Pieces

TEXT = 'Mr. Weston had gone--"So soon?" she said.\nIt was\nnoon; Chapter 3. The end.\n'


def test_sentences_are_what_would_be_said() -> None:
    assert list(sentences(TEXT)) == [
        "mister weston had gone",
        "so soon",
        "she said",
        "it was noon",
        "the end",
    ]


def test_manifests_and_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT)
    (tmp_path / "clips.jsonl").write_text(
        json.dumps({"audio": "x.wav", "seconds": 2.0, "text": "WHAT A CLIP SAYS"}) + "\n"
    )
    said = list(read_texts([tmp_path / "clips.jsonl", tmp_path / "book.txt"]))
    assert said[:2] == ["what a clip says", "mister weston had gone"]


def test_what_is_seen_once_is_no_long_context() -> None:
    pieces, weights = Pieces.read(WEIGHTS / "ancat-tiny.en-80" / PIECES), Weights(0.5, 0.3, 0.4)
    texts = ["it is said again"] * 4 + ["this only once"]
    few, all_ = (learn_language(texts, pieces, weights, seen=seen) for seen in ((1, 1, 2, 3, 4), (1,)))
    assert [len(grams.pieces) for grams in few.grams[:2]] == [len(grams.pieces) for grams in all_.grams[:2]]
    assert all(len(a.pieces) < len(b.pieces) for a, b in zip(few.grams[2:], all_.grams[2:], strict=True))
    again = pieces.encode("it is said again")
    assert few.probabilities(again[:-1]).argmax() == again[-1]
    assert few.probabilities(again[:-1]).sum() == pytest.approx(1, abs=2e-3)


def test_no_sentence_is_told() -> None:
    with pytest.raises(ValueError, match="no sentence"):
        learn_language([], Pieces.read(WEIGHTS / "ancat-tiny.en-80" / PIECES), Weights(1, 0, 0))


def copied_head(folder: Path) -> Path:
    """A head of a user's own on the shipped trunk."""
    folder.mkdir(parents=True)
    for name in (HEAD_CONFIG, PIECES, "head.safetensors"):
        shutil.copy(WEIGHTS / "ancat-tiny.en-80" / name, folder)
    return folder


def test_the_command_gives_the_heads_of_a_trunk_a_language(tmp_path: Path) -> None:
    heads = [copied_head(tmp_path / f"ancat-tiny.en-{ms}") for ms in (40, 60)]
    before = [find(str(head)) for head in heads]
    assert {model.language for model in before} == {WEIGHTS / "ancat-tiny.en-language"}  # the shipped trunk's
    (tmp_path / "book.txt").write_text(TEXT)
    command = ["train", "language", str(tmp_path / "book.txt"), "--head", str(heads[0]), "--weight", "0.6"]
    told = CliRunner().invoke(asr_stream.app, command)
    assert told.exit_code == 0, told.output
    assert "from 5 sentences" in told.output
    made = tmp_path / "ancat-tiny.en-language"
    config = json.loads((made / LANGUAGE_CONFIG).read_text())
    assert (config["texts"], config["own"], config["piece"]) == (0.6, 0.3, 0.5)
    assert (made / LANGUAGE).is_file()
    after = [find(str(head)) for head in heads]
    assert [model.language for model in after] == [made, made]
    assert all(new.description != old.description for new, old in zip(after, before, strict=True))


def test_what_is_told_in_other_pieces_is_another_heads(tmp_path: Path) -> None:
    head, near = copied_head(tmp_path / "ancat-tiny.en-40"), tmp_path / "ancat-tiny.en-language"
    shutil.copytree(WEIGHTS / near.name, near)
    assert find(str(head)).language == near
    shutil.copy(near / LANGUAGE_CONFIG, head)  # of its own: that goes first
    assert find(str(head)).language == head
    (head / PIECES).write_bytes(b"others")
    assert find(str(head)).language is None
    (near / LANGUAGE_CONFIG).write_text("{}")
    with pytest.raises(AdapterError, match="train the language again"):
        find(str(head))


def test_a_folder_without_a_head_is_told(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT)
    command = ["train", "language", str(tmp_path / "book.txt"), "--head", str(WEIGHTS / "careless-tiny.en")]
    told = CliRunner().invoke(asr_stream.app, command)
    assert told.exit_code != 0

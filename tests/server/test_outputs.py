"""Where results go: refused before the work where it cannot be, and never half there after it."""

import contextlib
from pathlib import Path

import pytest

from server.outputs import OutputError, replacing, writable_folder


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "out.txt"
    path.write_text("before")
    with contextlib.suppress(ZeroDivisionError), replacing(path) as file:
        file.write("half of it")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    with replacing(path) as file:
        file.write("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(None) as file:
        assert file is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "no/such/x",
            "there is no folder {0}/no/such: make it first (mkdir -p {0}/no/such), or name another",
        ),
        ("file/x", "{0}/file is no folder: name a file in one"),
        ("", "this is a folder: name a file in it"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_the_work(tmp_path: Path, name, says):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as refused, replacing(tmp_path / name):
        raise AssertionError("the work began")
    assert str(refused.value) == f"--out {tmp_path / name}: {says.format(tmp_path)}"


def test_a_folder_is_made_and_left_as_it_was(tmp_path: Path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (folder / "kept").touch()
    assert list(writable_folder(folder).iterdir()) == [folder / "kept"]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=rf"^--out {tmp_path / name}: {tmp_path / 'file'} is a file"):
        writable_folder(tmp_path / name)


def test_a_place_where_nothing_can_be_written_is_said_to_be_one(tmp_path: Path, monkeypatch):
    """Permissions bind no root, as whom tests may run: the system's answer is played."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("server.outputs.TemporaryFile", refuse)
    with pytest.raises(
        OutputError, match=r"nothing can be written there \(Permission denied\): name another"
    ):
        writable_folder(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match=rf"nothing can be written into {tmp_path} \(Permission denied\)"):
        replacing(tmp_path / "x").__enter__()

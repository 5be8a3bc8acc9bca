"""The transducer's own vocabulary: a few hundred sentencepiece units of lower-case words without punctuation."""

import re
from functools import cached_property
from pathlib import Path

import sentencepiece

WORD_START = "▁"  # how sentencepiece marks it
_APOSTROPHES = str.maketrans("’`", "''")
_NOT_SPOKEN = re.compile(r"[^a-z' ]+")


class Pieces:
    """Units and their text; satisfies what word grouping asks of a vocabulary.

    Args:
        model: a serialized sentencepiece model.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def read(cls, path: Path) -> "Pieces":
        return cls(path.read_bytes())

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Ids of a normalised text."""
        return list(self._processor.encode(text))

    def text(self, tokens: list[int]) -> str:
        return str(self._processor.decode([int(token) for token in tokens]))

    @cached_property
    def starts_word(self) -> list[bool]:
        """Of each id, whether a word begins with it."""
        return [self._processor.id_to_piece(i).startswith(WORD_START) for i in range(len(self))]


def normalise(text: str) -> str:
    """What the transducer learns to write: lower case, letters and apostrophes."""
    spoken = _NOT_SPOKEN.sub(" ", text.lower().translate(_APOSTROPHES))
    return " ".join(
        word for word in (w.strip("'") if w.strip("'") == "" else w for w in spoken.split()) if word
    )

"""The transducer's own vocabulary: a few hundred sentencepiece units of lower-case words without punctuation."""

import re
import unicodedata
from functools import cached_property
from pathlib import Path

import sentencepiece

WORD_START = "▁"  # how sentencepiece marks it
_APOSTROPHES = str.maketrans("’`", "''")
_NOT_SPOKEN = re.compile(r"[^a-z' ]+")


class Pieces:
    """Units and their text; satisfies asr.words.Words.

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

    @property
    def wait(self) -> int:
        """Blank, the id behind the last piece."""
        return len(self)

    @cached_property
    def unspoken(self) -> list[int]:
        """Ids that stand for no text: "unknown", which texts of letters and apostrophes never need."""
        processor = self._processor
        return [i for i in range(len(self)) if processor.is_unknown(i) or processor.is_control(i)]

    @cached_property
    def starts_word(self) -> list[bool]:
        """Of each id, whether a word begins with it."""
        return [self._processor.id_to_piece(i).startswith(WORD_START) for i in range(len(self))]

    def encode(self, text: str) -> list[int]:
        """Ids of a text at a word's beginning, as `normalise` writes it."""
        return list(self._processor.encode(normalise(text)))

    def text(self, tokens: list[int]) -> str:
        return " ".join(word for word, _ in self.words(tokens))

    def words(self, tokens: list[int]) -> list[tuple[str, int]]:
        """(word, number of pieces). A start without letters belongs to the letters behind it, if there are any."""
        words: list[tuple[str, int]] = []
        for token in tokens:
            letters = self._letters[token]
            if not words or (self.starts_word[token] and words[-1][0]):
                words.append((letters, 1))
            else:
                words[-1] = (words[-1][0] + letters, words[-1][1] + 1)
        if words and not words[-1][0]:
            _, n = words.pop()
            words[-1:] = [(word, count + n) for word, count in words[-1:]]
        return words

    @cached_property
    def _letters(self) -> list[str]:
        return [self._processor.id_to_piece(i).removeprefix(WORD_START) for i in range(len(self))]


def normalise(text: str) -> str:
    """What the transducer learns to write: lower case, letters without accents, apostrophes within words."""
    plain = unicodedata.normalize("NFKD", text.lower().translate(_APOSTROPHES))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = _NOT_SPOKEN.sub(" ", plain).split()
    return " ".join(word for word in words if word.strip("'"))

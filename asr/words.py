"""What the rooms behind a model ask of its vocabulary, be it Whisper's or a transducer's."""

from typing import Protocol


class Words(Protocol):
    """Token ids and the text that they stand for."""

    @property
    def wait(self) -> int:
        """The id that says nothing for now: EOT to the causal Whisper, blank to a transducer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, which begins a word."""
        ...

    def text(self, tokens: list[int]) -> str:
        """What the tokens say; that of a prefix begins that of the whole, but for a character cut in two."""
        ...

    def words(self, tokens: list[int]) -> list[tuple[str, int]]:
        """The words without surrounding space, with the number of tokens of each; together these are all tokens."""
        ...

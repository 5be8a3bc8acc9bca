"""What a listener knows beforehand: a prompt that sets the scene, and words that are likely to be said.

Words are favoured as in shallow fusion with a prefix tree (Zhao et al., Interspeech 2019): every token on the way
through a phrase earns a bonus, and a phrase that is left unfinished gives back what it has earned.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from asr.device import upload
from asr.limits import DEFAULT_BOOST

if TYPE_CHECKING:  # a client's options are checked without loading a model's code
    from asr.checkpoint import Vocabulary
    from asr.words import Words

MAX_PROMPT_TOKENS = 100  # of the decoder's 448, half of which are for the words of a window

NOWHERE = torch.zeros(0, dtype=torch.int64)


def prompt_tokens(vocabulary: "Vocabulary", prompt: str) -> tuple[int, ...]:
    """What stands before the usual prefix when `prompt` was said before: its last 100 tokens at most, or nothing.

    The form is Whisper's (arXiv 2212.04356, section 2.3): `<|startofprev|>` and the text.
    """
    words = " ".join(prompt.split())
    if not words:
        return ()
    return (vocabulary.tokenizer.sot_prev, *vocabulary.encode(words)[-MAX_PROMPT_TOKENS:])


@dataclass
class _Node:
    """A place in the tree; `earned` is what must be given back where the phrase is left here."""

    complete: bool = False  # a phrase ends here, and what it has earned is its own
    earned: float = 0.0
    children: dict[int, "_Node"] = field(default_factory=dict)
    next_ids: Tensor = NOWHERE


class Hotwords:
    """Phrases to be favoured: as they are written, in lower case and with a capital, at word beginnings only.

    Args:
        vocabulary: cuts the phrases into tokens.
        phrases: at least one.
        boost: bonus per token in nats.
    """

    def __init__(self, vocabulary: "Words", phrases: Iterable[str], boost: float = DEFAULT_BOOST) -> None:
        self.boost = boost
        self._wait = vocabulary.wait
        self._root = _Node()
        for phrase in phrases:
            for form in {phrase, phrase.lower(), phrase[:1].upper() + phrase[1:]}:
                self._add(vocabulary.encode(form))
        self._finish(self._root)

    def favour(self, logits: Tensor, said: Sequence[int]) -> Tensor:
        """The logits (V,) of what follows the tokens `said`, with the bonus; the argument is left as it was."""
        return self.favoured(logits[None], [(self, said)])[0]

    @staticmethod
    def favoured(logits: Tensor, texts: "Sequence[tuple[Hotwords | None, Sequence[int]]]") -> Tensor:
        """`favour` for n texts of one vocabulary, logits (n, V), each with its own hotwords or none.

        The host follows the texts, and a GPU is told of all bonuses at once.
        """
        if not any(hotwords for hotwords, _ in texts):
            return logits
        device, width = logits.device, logits.shape[1]
        figures, begin, go_on, wait = [], [NOWHERE], [NOWHERE], 0
        for start, (hotwords, said) in zip(range(0, len(texts) * width, width), texts, strict=True):
            if hotwords is None:
                figures.append((0.0, 0.0))
                continue
            node, wait = hotwords._walk(said), hotwords._wait
            figures.append((node.earned, hotwords.boost))
            go_on.append(start + node.next_ids)
            if node is not hotwords._root:
                begin.append(start + hotwords._root.next_ids)
        n_begin = sum(map(len, begin))
        begins, goes_on = upload(torch.cat([*begin, *go_on]), device).tensor_split([n_begin])
        earned, boost = upload(torch.tensor(figures), device).unbind(1)
        favoured = logits - earned[:, None]
        favoured[:, wait] = logits[:, wait]  # waiting for audio leaves no phrase
        flat = favoured.view(-1)
        flat[begins] += boost[begins // width]
        flat[goes_on] = logits[goes_on // width, goes_on % width] + boost[goes_on // width]
        return favoured

    def _walk(self, said: Sequence[int]) -> _Node:
        node = self._root
        for token in said:
            node = node.children.get(token) or self._root.children.get(token) or self._root
        return node

    def _add(self, tokens: list[int]) -> None:
        node = self._root
        for token in tokens:
            node = node.children.setdefault(token, _Node())
        node.complete = True

    def _finish(self, node: _Node) -> None:
        node.next_ids = torch.tensor(list(node.children), dtype=torch.int64)
        for child in node.children.values():
            child.earned = 0.0 if child.complete else node.earned + self.boost
            self._finish(child)


@dataclass(frozen=True)
class Guidance:
    """How one stream wants to be decoded."""

    beam: int = 1  # hypotheses, 1 to MAX_BEAM; 1 is greedy
    prompt: tuple[int, ...] = ()  # tokens in front of the prefix
    hotwords: Hotwords | None = None
    delay_s: float | None = None  # how long a causal model waits after a word; None: it was never taught to

    @classmethod
    def of(
        cls,
        vocabulary: "Vocabulary",
        beam: int,
        prompt: str,
        hotwords: tuple[str, ...],
        boost: float,
        delay_s: float | None = None,
    ) -> "Guidance":
        favoured = Hotwords(vocabulary, hotwords, boost) if hotwords and boost else None
        return cls(beam, prompt_tokens(vocabulary, prompt), favoured, delay_s)

    def streaming_prefix(self, vocabulary: "Vocabulary") -> tuple[int, ...]:
        """What stands before the causal model's tokens. Prompts do not: it was never taught any."""
        return vocabulary.prefix if self.delay_s is None else vocabulary.prefix_for(self.delay_s)


UNGUIDED = Guidance()

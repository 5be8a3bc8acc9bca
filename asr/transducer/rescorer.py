"""What a beam may have said, weighed by Whisper's decoder against what the trunk has heard.

No audio is encoded again: the decoder looks at the frames that the trunk's last layer made while it streamed
(`Trunk.heard`), which it has been taught to read (adapters/ancat/rescorer.py). The texts of an utterance are one
tree, in which those that begin alike share their tokens, and each token sees what stands before it: one pass scores
them all. What all of them begin with favours none, and is spared the product with the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.checkpoint import Vocabulary
from asr.decoder import Decoder
from asr.device import upload
from asr.transducer.hypotheses import TransducerHypothesis, common
from asr.transducer.pieces import Pieces
from kernels.int8_linear import padded

MOST = 16  # hypotheses that are weighed
FRAME_STEP = 300  # frames are padded to multiples, as `padded` says why


@dataclass(frozen=True)
class Tree:
    """Texts as nodes, of which each is a token behind another one."""

    tokens: list[int]
    depths: list[int]
    mask: Tensor  # (n, n) bool: what each node sees, itself and those before it
    paths: list[tuple[int, ...]]  # the nodes of each text


class Rescorer:
    """Chooses among hypotheses.

    Args:
        decoder: taught to read the trunk's frames.
        weight: of its log-probabilities, 0 to 1; the rest is the transducer's.
    """

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, weight: float) -> None:
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.weight = weight

    def best(
        self, frames: Tensor, hypotheses: Sequence[TransducerHypothesis], pieces: Pieces
    ) -> TransducerHypothesis:
        """The likeliest of an utterance's hypotheses, of which the first is the transducer's own choice.

        Args:
            frames: (1, T, d), see `Trunk.heard`.
            pieces: of the hypotheses.
        """
        scores = self.logprobs(frames, [pieces.text(list(one.tokens)) for one in hypotheses])
        weighed = [
            (1 - self.weight) * one.score + self.weight * score
            for one, score in zip(hypotheses, scores, strict=True)
        ]
        return hypotheses[weighed.index(max(weighed))]

    @torch.no_grad()
    def logprobs(self, frames: Tensor, texts: Sequence[str]) -> list[float]:
        """What the decoder thinks of each text, less what it thinks of that which all begin with.

        All zeros where there is nothing to choose, or a text is longer than the decoder's context.
        """
        encoded = [self.vocabulary.encode(text) if text else [] for text in texts]
        prefix = self.vocabulary.prefix
        longest = len(prefix) + max(map(len, encoded))
        if len(set(texts)) < 2 or longest > self.decoder.dims.n_text_ctx:
            return [0.0] * len(texts)
        tree = tree_of([(*prefix, *tokens) for tokens in encoded])
        first = common(*tree.paths) - 1  # the last node that all share; what follows it tells them apart
        asked = sorted({node for path in tree.paths for node in path[first:]})
        hidden = self._hidden(tree, frames)[upload(torch.tensor(asked), frames.device)]
        logits = self.decoder.project(hidden).float()
        known = logits[:, : self.vocabulary.eot + 1].logsumexp(-1)
        number = {node: i for i, node in enumerate(asked)}
        steps = [
            (number[node], token)
            for path in tree.paths
            for node, token in zip(
                path[first:],
                [*(tree.tokens[node] for node in path[first + 1 :]), self.vocabulary.eot],
                strict=True,
            )
        ]
        rows, said = upload(torch.tensor(steps), frames.device).unbind(1)
        logprobs = (logits[rows, said] - known[rows]).split([len(path) - first for path in tree.paths])
        scores: list[float] = torch.stack([own.sum() for own in logprobs]).tolist()
        return scores

    def _hidden(self, tree: Tree, frames: Tensor) -> Tensor:
        """(n, d) of the tree's nodes; tokens and frames are padded, so that there are few shapes."""
        n, n_frames, device = len(tree.tokens), frames.shape[1], frames.device
        spare = padded(n) - n
        mask = F.pad(tree.mask, (0, spare, 0, spare))
        mask.fill_diagonal_(True)
        heard = torch.arange(-(-n_frames // FRAME_STEP) * FRAME_STEP) < n_frames
        tokens, depths = (
            upload(F.pad(torch.tensor(x), (0, spare))[None], device) for x in (tree.tokens, tree.depths)
        )
        frames = F.pad(frames, (0, 0, 0, len(heard) - n_frames))
        hidden = self.decoder(
            tokens,
            frames,
            depths,
            upload(mask[None, None], device),
            upload(heard[None, None, None], device),
        )
        return hidden[0, :n]


def tree_of(texts: Sequence[Sequence[int]]) -> Tree:
    """Texts, one token each at least, that begin with the same one."""
    nodes: dict[tuple[int, int], int] = {}  # (what it stands behind, token): its number
    seen: list[tuple[int, ...]] = []
    paths = []
    for text in texts:
        path: tuple[int, ...] = ()
        for token in text:
            node = nodes.setdefault((path[-1] if path else -1, token), len(nodes))
            path = (*path, node)
            if node == len(seen):
                seen.append(path)
        paths.append(path)
    mask = torch.zeros(len(seen), len(seen), dtype=torch.bool)
    for node, path in enumerate(seen):
        mask[node, list(path)] = True
    return Tree([token for _, token in nodes], [len(path) - 1 for path in seen], mask, paths)

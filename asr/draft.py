"""Greedy search that begins with somebody else's text: what the decoder would have said itself is taken over at once.

The method is that of speculative decoding (Leviathan et al., 2023, arXiv 2211.17192) for the likeliest token, with a
draft that costs nothing: the streaming text of the same audio. A pass over many tokens takes hardly longer than one
over a single one, and the result is greedy search's own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from asr.search import GreedySearch, Hypothesis, Row, SearchState, is_loop

NEAR = 4  # tokens of the draft in which it is taken up again behind one that did not hold
MOST = 12  # tokens looked at together, once the draft has failed


class DraftedSearch(GreedySearch):
    """Greedy search of one stream over audio that is all there."""

    @torch.no_grad()
    def follow(
        self, features: Tensor, draft: Sequence[int], state: SearchState, rows: Tensor, max_tokens: int
    ) -> Hypothesis:
        """What greedy search says of features (1, T, d), in at most `max_tokens` tokens, all settled.

        Args:
            draft: tokens that are likely to be said.
            rows: (1,) the row, which was reset.
        """
        self.decoder.listen(features, state.decoder, rows)
        (row,) = rows.tolist()
        stream, heard = state.rows[row], int(state.decoder.audio.lengths[row])
        left, most = list(draft), max_tokens
        while True:
            begun = len(stream.tokens)
            self._propose(stream, left[: min(most, max_tokens - begun)], heard)
            place = self._rescore(state, rows)[row]
            left, most = left[len(stream.tokens) - begun :], MOST
            stream.stable = len(stream.tokens)
            best = place.best[0]
            if (
                best.token == self.vocabulary.eot
                or len(stream.tokens) >= max_tokens
                or not self._may_follow(stream, best.token)
            ):
                return stream.hypothesis()
            stream.push(*best, frame=heard)
            stream.stable = len(stream.tokens)
            left = behind(left, best.token)

    def _propose(self, stream: Row, tokens: Sequence[int], heard: int) -> None:
        """Puts `tokens` up to be judged: one that is not the best of its place falls, and all behind it."""
        for token in tokens:
            if not self._may_follow(stream, token):
                break
            stream.push(token, float("inf"), 0.0, heard)

    def _may_follow(self, stream: Row, token: int) -> bool:
        return not is_loop([*stream.tokens, token]) and not self._full(len(stream.tokens))


def behind(draft: list[int], token: int) -> list[int]:
    """What is left of a draft when `token` was said where it has its first one.

    Where the token is not near, the draft may have missed it, so nothing is dropped; if it has another in its place,
    the next token tells.
    """
    return draft[draft.index(token) + 1 :] if token in draft[:NEAR] else draft

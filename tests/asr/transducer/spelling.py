"""Small vocabularies, and transducers that say what a test wants to hear."""

import io
from dataclasses import dataclass
from functools import cache

import sentencepiece
import torch
from torch import Tensor

from asr.search import Hypothesis
from asr.transducer.joiner import Joiner, Predictor
from asr.transducer.pieces import Pieces
from asr.transducer.search import TransducerSearch, TransducerSearchState

TEXT = "the then sat on mat hat an a at that it it's mad had on old sad ham map an"
WIDTH = 8  # of random models


@cache
def pieces_for(text: str = TEXT, n: int = 32) -> Pieces:
    """`n` units learnt from a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split()),
        model_writer=model,
        vocab_size=n,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return Pieces(model.getvalue())


@dataclass(frozen=True)
class Model:
    """What a search needs."""

    pieces: Pieces
    predictor: Predictor
    joiner: Joiner

    @property
    def blank(self) -> int:
        return len(self.pieces)

    def search(self, **options) -> TransducerSearch:
        return TransducerSearch(self.predictor, self.joiner, self.pieces, **options)

    def logprobs(self, frame: Tensor, said: tuple[int, ...]) -> Tensor:
        """(V,) of what may follow `said` at a frame (width,), by the modules themselves."""
        context = self.predictor.contexts(torch.tensor([said], dtype=torch.int64))[0, -1]
        logprobs = self.joiner(frame, self.predictor(context))
        logprobs[self.pieces.unspoken] = -torch.inf
        return logprobs.log_softmax(-1)


def whimsical(seed: int, *, pieces: Pieces | None = None, wait: float = 6.0) -> Model:
    """Random opinions about frames and contexts; `wait` favours blank."""
    pieces = pieces or pieces_for()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(pieces, Predictor(len(pieces), WIDTH), Joiner(WIDTH, len(pieces)))
        for parameter in (*model.predictor.parameters(), *model.joiner.parameters()):
            parameter.requires_grad_(False).normal_(0, 0.7)
        model.joiner.of_frames.bias[-1] += wait
    return model


def obedient() -> Model:
    """Frames are logits; but no word begins right behind a word's beginning, and no other pieces touch either."""
    pieces = pieces_for()
    n = len(pieces) + 1
    model = Model(pieces, Predictor(n - 1, n), Joiner(n, n - 1))
    for parameter in (*model.predictor.parameters(), *model.joiner.parameters()):
        parameter.requires_grad_(False).zero_()
    model.predictor.embedding.weight.copy_(torch.eye(n))
    model.predictor.mix.weight[:, n:] = 10 * torch.eye(n)  # the newest piece, large enough for a GELU
    model.joiner.of_frames.weight.copy_(torch.eye(n))
    starts = torch.tensor(pieces.starts_word)
    model.joiner.of_contexts.weight[:-1, :-1] = -2.0 * (starts[:, None] == starts)  # 10 times as much
    return model


def frame(model: Model, wait: float = 5.0, **logits: float) -> Tensor:
    """(V,) for an obedient model: `_the=9` is the logit of "▁the", `wait` that of blank."""
    row = torch.full((model.blank + 1,), -8.0)
    row[-1] = wait
    for piece, logit in logits.items():
        row[piece_id(model, piece)] = logit
    return row


def piece_id(model: Model, piece: str) -> int:
    found = model.pieces._processor.piece_to_id(piece.replace("_", "▁"))
    assert found != model.pieces._processor.unk_id()
    return int(found)


def babble(model: Model, n_frames: int, seed: int, *, rivals: bool = True) -> Tensor:
    """(T, V) for an obedient model: a piece at two frames of five, and another that may be as likely."""
    g = torch.Generator().manual_seed(seed)
    frames = frame(model).repeat(n_frames, 1)
    frames[:, :-1] += torch.rand(n_frames, model.blank, generator=g)
    spoken = torch.rand(n_frames, generator=g) < 0.4
    for _ in range(1 + rivals):
        pieces = torch.randint(1, model.blank, (n_frames,), generator=g)
        frames[spoken, pieces[spoken]] = 9 + 2 * torch.rand(int(spoken.sum()), generator=g)
    return frames


def hear(
    search: TransducerSearch,
    state: TransducerSearchState,
    frames: Tensor,
    row: int = 0,
    heard: Tensor | None = None,
) -> Hypothesis:
    """Frames (T, width) of one row; each finished as soon as it came unless `heard` (T,) says otherwise."""
    first = state.rows[row].n_frames
    heard = torch.arange(first, first + len(frames)) if heard is None else heard
    (said,) = search.step(frames[None], torch.tensor([len(frames)]), heard[None], state, torch.tensor([row]))
    return said


def begun(search: TransducerSearch, width: int = 1, **how) -> TransducerSearchState:
    """The state of one stream of this width."""
    state = search.init_state(1)
    search.reset(state, torch.tensor([0]), widths=[width], **how)
    return state


def noise(n_frames: int, seed: int) -> Tensor:
    """(T, WIDTH) random frames."""
    return torch.randn(n_frames, WIDTH, generator=torch.Generator().manual_seed(seed))

"""Voice activity and silence: when somebody speaks, and when an utterance has ended."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

WINDOW = 512  # samples per probability, 32 ms
_CONTEXT = 64  # samples before a window that silero-vad sees again
_STATE = 128  # width of its recurrent state
_FOURIER = 256  # samples of its spectra, half as many from one to the next
#: On a CPU, products of three rows and fewer add in another order, and functions of what does not fill a vector round
#: otherwise. Padded, a stream's probabilities are the same to the bit whoever shares the batch.
_NOBODY = 3  # streams of silence beside the real ones
_LEAST = 4  # windows
_WHOLE = 64  # rows of a function


@dataclass(frozen=True)
class EndpointOptions:
    """When a window of speech opens and closes. Probabilities are silero-vad's."""

    onset: float = 0.5  # speech begins where a window reaches this
    offset: float = 0.35  # and goes on while windows reach this
    lead_ms: int = 500  # audio before the onset that belongs to the utterance
    longest_ms: int = 28_000  # an utterance is cut at the latest here, at its quietest place

    def __post_init__(self) -> None:
        if not 0 < self.offset <= self.onset < 1:
            raise ValueError("onset and offset are probabilities, offset not above onset")
        if not 10_000 <= self.longest_ms <= 28_000:
            raise ValueError(f"longest_ms must be 10000 to 28000, not {self.longest_ms}")


@dataclass(frozen=True)
class VoiceState:
    """One row per stream."""

    recurrent: Tensor  # (S, 2, 128)
    context: Tensor  # (S, 64)
    tail: Tensor  # (S, 512) samples of a window that is not complete, left-aligned
    fill: Tensor  # (S,) int64


class VoiceActivity:
    """silero-vad as a pure step over many streams: samples -> probability of speech per 32 ms."""

    stride = WINDOW
    lookahead = 0

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad  # sets torch to one thread when imported

        model = load_silero_vad()._model
        torch.set_num_threads(threads)
        self._basis = model.stft.forward_basis_buffer.squeeze(1)  # (2 * 129, 256): real parts, imaginary ones
        convolutions = [getattr(model.encoder, name).reparam_conv for name in "0123"]
        self._convolutions = [
            (
                convolution.weight.detach().transpose(1, 2).flatten(1),
                convolution.bias.detach(),
                convolution.stride[0],
            )
            for convolution in convolutions
        ]
        self._recurrent = nn.LSTM(_STATE, _STATE).requires_grad_(False)  # its cell, over many windows at once
        cell = model.decoder.rnn.state_dict()
        self._recurrent.load_state_dict({f"{name}_l0": weight for name, weight in cell.items()})
        last = getattr(model.decoder.decoder, "2")
        self._last = last.weight.detach().squeeze(2), last.bias.detach()

    def init_state(self, rows: int) -> VoiceState:
        return VoiceState(
            recurrent=torch.zeros(rows, 2, _STATE),
            context=torch.zeros(rows, _CONTEXT),
            tail=torch.zeros(rows, WINDOW),
            fill=torch.zeros(rows, dtype=torch.int64),
        )

    def reset(self, state: VoiceState, rows: Tensor) -> None:
        """Makes `rows` equal to fresh ones."""
        state.recurrent[rows] = 0
        state.context[rows] = 0
        state.fill[rows] = 0

    @torch.no_grad()
    def step(self, samples: Tensor, state: VoiceState, rows: Tensor) -> tuple[list[Tensor], VoiceState]:
        """Probabilities of every window that the new samples complete.

        Args:
            samples: (B, n) of `rows` (B,), which may be out of step with each other.

        Returns:
            (t,) probabilities for each row, t >= 0, and the state, updated in place.
        """
        pieces = []
        for row, new in zip(rows.tolist(), samples, strict=True):
            audio = torch.cat([state.tail[row, : int(state.fill[row])], new])
            windows, rest = audio.split([len(audio) // WINDOW * WINDOW, len(audio) % WINDOW])
            state.tail[row, : len(rest)] = rest
            state.fill[row] = len(rest)
            pieces.append(windows.view(-1, WINDOW))
        counts = [len(windows) for windows in pieces]
        if not any(counts):
            return [torch.zeros(0) for _ in counts], state
        seen = torch.cat([self._in_context(*piece, state) for piece in zip(rows, pieces, strict=True)])
        complete = [i for i, n in enumerate(counts) if n]
        features = [part for part in self._features(seen).split(counts) if len(part)]
        nobody = [features[0].new_zeros(max(counts), features[0].shape[1])] * _NOBODY
        packed = pack_sequence([*features, *nobody], enforce_sorted=False)
        at = rows[complete]
        before = F.pad(state.recurrent[at].transpose(0, 1), (0, 0, 0, _NOBODY))
        hidden, (h, c) = self._recurrent(packed, before[:, None].unbind())
        state.recurrent[at] = torch.cat([h, c]).transpose(0, 1)[: len(at)]
        heard = unpack_sequence(hidden._replace(data=self._probabilities(hidden.data)))
        speech = [torch.zeros(0) for _ in counts]
        for i, probabilities in zip(complete, heard[: len(complete)], strict=True):
            speech[i] = probabilities
        return speech, state

    # The model's own forward as products of windows of frames, which are quicker than its convolutions, and without
    # the phases that it computes and does not use.

    def _features(self, seen: Tensor) -> Tensor:
        """(n, 64 + 512) windows in context -> (n, 128)"""
        n = len(seen)
        seen = F.pad(seen, (0, _CONTEXT, 0, max(0, _LEAST - n)))
        # Its padding mirrors the end.
        seen[:, -_CONTEXT:] = seen[:, -2 * _CONTEXT - 1 : -_CONTEXT - 1].flip(1)
        real, imaginary = _product(seen.unfold(1, _FOURIER, _FOURIER // 2), self._basis).chunk(2, dim=2)
        x = (real * real + imaginary * imaginary).sqrt()  # (n, 4, 129)
        for weight, bias, stride in self._convolutions:
            frames = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, stride).transpose(2, 3)  # (n, t, 3, channels)
            x = _product(frames.flatten(2), weight, bias).relu_()
        return x[:n, 0]

    def _probabilities(self, hidden: Tensor) -> Tensor:
        """(n, 128) -> (n,)"""
        n = len(hidden)
        hidden = F.pad(hidden, (0, 0, 0, -n % _WHOLE)).relu_()
        return F.linear(hidden, *self._last).sigmoid_()[:n, 0]

    @staticmethod
    def _in_context(row: Tensor, windows: Tensor, state: VoiceState) -> Tensor:
        """(t, 512) windows -> (t, 64 + 512), each behind the samples before it, the last of which are kept."""
        tails = windows[:, -_CONTEXT:]
        before = torch.cat([state.context[row][None], tails])
        state.context[row] = before[-1]
        return torch.cat([before[:-1], windows], dim=1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of windows (n, t, K) that overlap in memory: as one matrix they take a third of the time."""
    return F.linear(x.flatten(0, 1), weight, bias).unflatten(0, x.shape[:2])

"""Samples -> log-mel frames, the same however the samples were cut up.

Whisper clamps log-mel energies to (maximum of the whole clip - 8). A stream has no whole clip, so the
floor follows the *running* maximum instead: it depends on the past alone, in training and in serving.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from whisper.audio import mel_filters

from asr.audio import SAMPLE_RATE
from asr.device import upload

WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms per mel frame
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
N_MELS = 80
DYNAMIC_RANGE = 8.0  # decades below the peak that are kept, as in Whisper
#: The running maximum starts at the level of quiet speech (log10 mel power), so that the silence before
#: the first word already looks to the model as it will look after it.
INITIAL_PEAK = 0.0

_HALF = WINDOW // 2  # frame m is centred on sample 160 m


@dataclass(frozen=True)
class MelState:
    """What a stream of mel frames remembers; one row per stream."""

    tail: Tensor  # (S, WINDOW) samples that later frames still need, left-aligned
    fill: Tensor  # (S,) int64, how many of them are valid
    started: Tensor  # (S,) bool, whether the reflected left edge has been put before the first frame
    peak: Tensor  # (S,) running maximum of the log10 mel power


class LogMel:
    """Whisper's log-mel spectrogram as a pure step. Frame m sees samples [160 m - 200, 160 m + 200)."""

    stride = HOP
    lookahead = _HALF

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._filters = mel_filters("cpu", N_MELS).to(self.device)  # (80, 201)
        self._window = torch.hann_window(WINDOW, device=self.device)

    def init_state(self, rows: int) -> MelState:
        return MelState(
            tail=torch.zeros(rows, WINDOW, device=self.device),
            fill=torch.zeros(rows, dtype=torch.int64),
            started=torch.zeros(rows, dtype=torch.bool),
            peak=torch.full((rows,), INITIAL_PEAK, device=self.device),
        )

    def reset(self, state: MelState, rows: Tensor) -> None:
        """Makes `rows` (B,) equal to fresh ones."""
        state.fill[rows] = 0
        state.started[rows] = False
        state.peak[upload(rows, self.device)] = INITIAL_PEAK

    def step(self, samples: Tensor, state: MelState, rows: Tensor) -> tuple[Tensor, MelState]:
        """Turns new samples into every mel frame that they complete.

        Args:
            samples: (B, n) float32 at 16 kHz.
            state: of all streams; the rows stepping are updated in place.
            rows: (B,) the rows that `samples` belong to; they must be in the same phase.

        Returns:
            (B, 80, t) normalised log-mel frames, t >= 0, and the state.
        """
        fill, started = int(state.fill[rows[0]]), bool(state.started[rows[0]])
        assert bool((state.fill[rows] == fill).all()) and bool((state.started[rows] == started).all())
        at = upload(rows, self.device)
        audio = torch.cat([state.tail[at, :fill], samples], dim=1)
        if not started and audio.shape[1] > _HALF:
            audio = torch.cat([audio[:, 1 : _HALF + 1].flip(1), audio], dim=1)  # as torch.stft(center=True)
            started = True
        n_frames = max(0, (audio.shape[1] - WINDOW) // HOP + 1) if started else 0
        mel = audio.new_zeros(audio.shape[0], N_MELS, 0)
        if n_frames:
            power = self._log_power(audio.unfold(1, WINDOW, HOP))
            mel, state.peak[at] = normalise(power, state.peak[at])
        rest = audio[:, n_frames * HOP :]
        state.tail[at, : rest.shape[1]] = rest
        state.fill[rows] = rest.shape[1]
        state.started[rows] = started
        return mel, state

    def whole(self, samples: Tensor) -> Tensor:
        """(B, n) samples -> (B, 80, n // 160) frames with the running maximum: training's view of a clip.

        Equals `step` over the samples followed by enough silence to complete the last frames.
        """
        return normalise(self._centred(samples), samples.new_full((len(samples),), INITIAL_PEAK))[0]

    def offline(self, samples: Tensor) -> Tensor:
        """(B, n) samples -> (B, 80, n // 160) frames as openai-whisper makes them: floor from the whole clip."""
        power = self._centred(samples)
        floor = power.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE
        return (torch.maximum(power, floor) + 4.0) / 4.0

    def _centred(self, samples: Tensor) -> Tensor:
        n_frames = samples.shape[1] // HOP
        padded = torch.cat(
            [samples[:, 1 : _HALF + 1].flip(1), samples, samples.new_zeros(len(samples), _HALF)], 1
        )
        return self._log_power(padded.unfold(1, WINDOW, HOP)[:, :n_frames])

    def _log_power(self, frames: Tensor) -> Tensor:
        """(B, t, 400) windows of samples -> (B, 80, t) log10 mel power."""
        spectrum = torch.fft.rfft(frames * self._window)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, t, 201)
        return (power @ self._filters.T).clamp_min(1e-10).log10().transpose(1, 2)


def normalise(power: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Whisper's scaling over a running maximum.

    Args:
        power: (B, 80, t) log10 mel power, t >= 1.
        peak: (B,) the maximum before these frames.

    Returns:
        (B, 80, t) scaled frames and (B,) the new maximum.
    """
    running = torch.maximum(power.amax(dim=1).cummax(dim=1).values, peak[:, None])  # (B, t)
    floored = torch.maximum(power, running[:, None, :] - DYNAMIC_RANGE)
    return (floored + 4.0) / 4.0, running[:, -1]

"""How late a head says its pieces, from clips of which it is known when each word was said."""

from collections.abc import Callable, Sequence

import jiwer
import numpy as np
import torch

from adapters.align import AlignedClip
from adapters.ancat.corpus import LONGEST_S
from asr.audio import SAMPLE_RATE, read_audio
from asr.mel import LogMel
from asr.timing import TimedWord
from asr.transducer.model import Transducer
from asr.transducer.pieces import normalise
from asr.transducer.timing import Lateness, timed_words
from asr.transducer.trunk import SAMPLES_PER_FEATURE

CLIPS = 100
FEWEST_WORDS = 20  # of which a median is taken
TRAILING_S = 0.4  # of silence behind each clip, as in training: the last word needs a moment to be said

#: Called with how many clips are done, how many there are, and a line about them.
Progress = Callable[[float, float, str], None]


def fit_lateness(
    model: Transducer,
    clips: Sequence[AlignedClip],
    progress: Progress = lambda done, total, line: None,
    *,
    most: int = CLIPS,
) -> Lateness | None:
    """The medians over words that the head recognises, greedily, in up to `most` clips, the same ones every time.

    None where it recognises fewer than FEWEST_WORDS: their median is no better than 0.
    """
    usable = [clip for clip in clips if clip.words and clip.seconds < LONGEST_S]
    chosen = [usable[i] for i in np.random.default_rng(0).permutation(len(usable))[:most]]
    late: list[tuple[float, float]] = []
    for number, clip in enumerate(chosen, 1):
        late += delays(clip.words or [], heard(model, read_audio(clip.audio)))
        progress(number, len(chosen), f"{len(late)} words")
    if len(late) < FEWEST_WORDS:
        return None
    first_s, last_s = np.median(late, axis=0).tolist()
    return Lateness(round(1000 * first_s), round(1000 * last_s))


@torch.no_grad()
def heard(model: Transducer, samples: np.ndarray) -> list[TimedWord]:
    """What a head says of a clip (n,), each word when it says it."""
    audio, lengths = padded(samples)
    features = model.trunk(LogMel(model.device).whole(audio.to(model.device)))[:, : int(lengths)]
    frames, schedule = model.encoder(features, lengths, model.policy)
    search = model.search()
    state = search.init_state(1)
    search.step(frames, lengths, schedule.done, state, torch.tensor([0]))
    return timed_words(state.rows[0].hypothesis(), model.pieces)


def padded(samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip (n,) with silence behind it, (1, m), and the (1,) features that count: one less than it holds, as the
    front end looks ahead."""
    n = -(-(len(samples) + round(TRAILING_S * SAMPLE_RATE)) // SAMPLES_PER_FEATURE)
    audio = torch.zeros(1, (n + 1) * SAMPLES_PER_FEATURE)
    audio[0, : len(samples)] = torch.from_numpy(samples)
    return audio, torch.tensor([n])


def delays(true: Sequence[tuple[str, float, float]], said: Sequence[TimedWord]) -> list[tuple[float, float]]:
    """How much later than it is true each word that was recognised began and ended, in seconds.

    Args:
        true: (text, start s, end s), in any writing.
    """
    true = [(normalise(text).replace(" ", ""), start, end) for text, start, end in true]
    true, said = [word for word in true if word[0]], [word for word in said if word.text]
    if not true or not said:
        return []
    aligned = jiwer.process_words(
        " ".join(text for text, _, _ in true), " ".join(word.text for word in said)
    ).alignments[0]
    pairs = (
        (true[chunk.ref_start_idx + i], said[chunk.hyp_start_idx + i])
        for chunk in aligned
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    )
    return [(word.start - start, word.end - end) for (_, start, end), word in pairs]

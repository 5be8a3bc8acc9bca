"""What an utterance ends with: its final, which is the streaming text, or what the second pass makes of its audio."""

from collections.abc import Callable
from dataclasses import dataclass

from asr.audio import Samples, samples_in
from asr.offline import NO_CONTEXT
from asr.timing import TimedWord
from streaming import policy
from streaming.context import Heard
from streaming.events import Bookmark, Endpoint, Event
from streaming.final_pass import FinalJob, FinalPass, Rescoring
from streaming.stream import Stream


@dataclass(frozen=True)
class Ended:
    """An utterance that has ended, as the stream heard it.

    Attributes:
        words: times in seconds from its beginning; none where the stream heard no word in it.
        samples: (n,) of its audio, and what was heard behind it.
        start: where it began on the stream's timeline, in samples.
        bookmark: behind it.
        rescoring: chooses among the hypotheses of it, in place of hearing it again.
    """

    words: list[TimedWord]
    samples: Samples
    start: int
    bookmark: Bookmark
    rescoring: Rescoring | None


class Finals:
    """Puts out finals, in the order in which utterances end.

    Args:
        final_pass: hears utterances again.
        second_pass_ended: as of `Engine`.
    """

    def __init__(self, final_pass: FinalPass, second_pass_ended: Callable[[str], None]) -> None:
        self._final_pass = final_pass
        self._second_pass_ended = second_pass_ended

    def wants_second_pass(self, stream: Stream) -> bool:
        """Whether the utterance that ends now gets one: not if the client does not want it, or all is late."""
        return stream.session.options.final_pass != "none" and not self._final_pass.behind

    def end(self, stream: Stream, ended: Ended) -> None:
        """Puts out the final of the stream's utterance, or promises it; the next one begins."""
        session, utterance, begin_ms = stream.session, stream.utterance, stream.ms(ended.start)
        n_finished = samples_in(ended.bookmark.audio_ms - begin_ms)
        heard = Heard(ended.samples[:n_finished] if stream.full_pass else NO_CONTEXT.samples, ended.start)
        before, stream.before = stream.before, heard

        def final(better: list[TimedWord] | None) -> list[Event]:
            said, mark = better or ended.words, ended.bookmark
            if stream.full_pass and said:
                mark = heard.say(said, mark)
            elif stream.full_pass:
                heard.say_nothing(before)
            told = policy.final(said, utterance, begin_ms, mark)
            if told is None:
                return []
            return [told] if ended.words else [Endpoint(utterance, told.audio_ms), told]  # nobody knew of it

        if self.wants_second_pass(stream):
            place = session.promise()

            def done(better: list[TimedWord] | None) -> None:
                if better or ended.words:
                    given_up = "skipped" if self._final_pass.hurried else "failed"
                    self._second_pass_ended("heard" if better else given_up)
                session.fulfil(place, *final(better))

            job = FinalJob(
                ended.samples,
                done,
                wanted=lambda: not session.aborted,
                guidance=stream.second_guidance,
                draft=" ".join(word.text for word in ended.words),
                context=lambda: before.context_of(ended.start),
                rescoring=ended.rescoring,
            )
            self._final_pass.submit(job)
        else:
            session.put(*final(None))
            if session.options.final_pass != "none":
                self._second_pass_ended("skipped")
        stream.utterance += 1
        stream.shown = policy.Shown()

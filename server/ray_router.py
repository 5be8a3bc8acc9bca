"""Which replica takes the next conversation. Ray's processes load this by its name."""

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class MostRoom(FIFOMixin, RequestRouter):
    """Looks at all replicas: at those that may have free slots first, of which Ray takes the least busy.

    Ray's own router looks at two at random, and may find both full while a third has free slots. Full ones come last,
    for they still tell how they are, and refuse a conversation in words.
    """

    def initialize_state(self, slots: int) -> None:
        """`slots` of each replica."""
        self._slots = slots

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Two ranks; a replica of which nothing is known counts as free, and is asked."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = (
                True  # a round that found none is not run again at once
            )
        taken = {
            each.replica_id: self.replica_queue_len_cache.get(each.replica_id) for each in candidate_replicas
        }
        full = {
            replica for replica, requests in taken.items() if requests is not None and requests >= self._slots
        }
        return [
            [each for each in candidate_replicas if each.replica_id not in full],
            [each for each in candidate_replicas if each.replica_id in full],
        ]

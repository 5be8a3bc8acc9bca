"""Which replica takes the next conversation. Ray's processes load this by its name."""

import asyncio

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

PATIENCE_S = 1.0  # for a replica to say how busy it is


class MostRoom(FIFOMixin, RequestRouter):
    """The replica with the fewest requests under way, of all; those that say nothing after it, full ones last.

    Ray's own router looks at two at random, and at those it knows something of first: then most conversations go to
    one, and both may be full while a third has room. Full replicas refuse in words, which is better than to wait.
    """

    def initialize_state(self, slots: int) -> None:
        """`slots` of each replica."""
        self._slots = slots

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Three ranks, of each of which Ray takes the replica with the shortest queue."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # or rounds that find none follow at once
        answers = await asyncio.gather(*map(self._requests, candidate_replicas))
        asked = list(zip(candidate_replicas, answers, strict=True))
        return [
            [replica for replica, requests in asked if requests is not None and requests < self._slots],
            [replica for replica, requests in asked if requests is None],
            [replica for replica, requests in asked if requests is not None and requests >= self._slots],
        ]

    async def _requests(self, replica: RunningReplica) -> int | None:
        """How many are under way, as known or as asked; None if it does not say."""
        known = self.replica_queue_len_cache.get(replica.replica_id)
        if known is not None:
            return known
        try:
            async with asyncio.timeout(PATIENCE_S):
                requests: int = await replica.get_queue_len(deadline_s=PATIENCE_S)
        except Exception:  # it is gone, or too busy to tell: Ray, which asks it again, acts upon that
            return None
        self.replica_queue_len_cache.update(replica.replica_id, requests)
        return requests

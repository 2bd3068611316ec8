"""Telling the processes of one start from those of earlier ones.

torchrun starts processes again (--max-restarts, or where a machine comes or goes) over the same
store, which has all that those before them have left there, and counts restarts on each machine
apart. So the first process gives each start a name of its own.
"""

from __future__ import annotations

from uuid import uuid4

from torch.distributed.distributed_c10d import Store

from tencentpretrain.distributed.processes import Place, wait_until


def attempt_name(store: Store, place: Place, timeout: float) -> str:
    """A name that the processes of this start have in common, and no others.

    Each leaves a number that nobody had before. The first process answers what it finds until all
    have thanked it, which those of an earlier start do not any more.

    Args:
        store: That all processes reach.
        place: Which process this is.
        timeout: Seconds after which those that do not come are given up.

    Raises:
        RuntimeError: if one of them does not come.
    """
    own = uuid4().hex
    if place.rank:
        store.set(f"arrived/{place.rank}", own)
        if not wait_until(lambda: store.check([f"answer/{own}"]), timeout):
            raise RuntimeError("rank(s) [0] did not come")
        first: str = store.get(f"answer/{own}").decode()
        store.set(f"thanks/{first}/{place.rank}", "")
        return first
    others = range(1, place.world)
    arrived = [f"arrived/{rank}" for rank in others]
    thanks = [f"thanks/{own}/{rank}" for rank in others]

    def answer() -> bool:
        there = arrived if store.check(arrived) else [a for a in arrived if store.check([a])]
        for number in store.multi_get(there) if there else []:
            store.set(f"answer/{number.decode()}", own)
        return store.check(thanks)

    if not wait_until(answer, timeout):
        absent = [rank for rank in others if not store.check([f"thanks/{own}/{rank}"])]
        raise RuntimeError(f"rank(s) {absent} did not come")
    return own

"""One of many processes that use a home at once; prints the ids of the events that it made.

crowd_worker.py HOME NUMBER ROUNDS
"""

from __future__ import annotations

import random
import sys

import storekit

from adapterhub.errors import AlreadyExists, NotFound
from adapterhub.store import Outcome, Store


def act(store: Store, rng: random.Random, number: int, turn: int) -> Outcome | None:
    mine = f"own-{number}"
    if turn == 0 or rng.random() < 0.4:
        with store.writing():
            digest = storekit.put(store, rng.randrange(10_000))
            return store.add_version(rng.choice((mine, "shared", "team/shared")), digest)
    choice = rng.randrange(5)
    name = rng.choice((mine, "shared", "team/shared"))
    if choice == 0:
        return store.tag(name, store.resolve(name)[1], f"t{rng.randrange(3)}")
    if choice == 1:
        return store.rename(name, f"moved-{number}-{turn}")
    if choice == 2:
        return store.edit_card(name, {"topics": [f"w{number}"], f"k{number}": turn})
    if choice == 3:
        store.gc(grace_seconds=0)
        return None
    store.list(limit=5)
    store.search("own")
    return None


def main(home: str, number: int, rounds: int) -> None:
    rng = random.Random(number)
    with Store(home, on_note=lambda text: print("note", text)) as store:
        for turn in range(rounds):
            try:
                done = act(store, rng, number, turn)
            except (NotFound, AlreadyExists):
                continue
            for event in done.events if done else ():
                print("event", event.id)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""Processes that share work through a store: parts are shared out once, those of the dead are taken again, and somebody is always first."""

import threading
import time

import pytest
import torch.distributed as dist

from rdc.errors import ConfigError, RdcError
from rdc.execution.peers import Peers, seconds_of_silence

SILENT = 0.4  # seconds


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def joined(store):
    made = [Peers(store, rank, 3, SILENT) for rank in range(3)]
    yield made
    for one in made:
        one.close()


def in_threads(*works):
    """What each gives or raises."""
    found = [None] * len(works)

    def run(place):
        try:
            found[place] = works[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return found


def slow(peers, parts, seconds):
    done = []
    for part in peers.shared_out(parts):
        time.sleep(seconds)
        done.append(part)
    return done


def test_each_part_is_done_once_and_by_whoever_is_free(joined):
    found = in_threads(*(lambda one=one: slow(one, range(20), 0.01 if one.rank else 0.08) for one in joined))
    assert sorted(part for parts in found for part in parts) == list(range(20))
    assert len(found[0]) < len(found[1]) and found[1] == sorted(found[1])
    again = in_threads(*(lambda one=one: slow(one, range(4), 0) for one in joined))  # another work, the same numbers
    assert sorted(part for parts in again for part in parts) == list(range(4))


def test_what_a_dead_one_took_is_done_by_others(joined):
    dead = joined[1].shared_out([7, 8, 9])
    assert next(dead) == 7
    joined[1].close()  # gives no more signs, and never asks for its next part
    begun = time.monotonic()
    found = in_threads(*(lambda one=one: slow(one, [7, 8, 9], 0.01) for one in (joined[0], joined[2])))
    assert sorted(found[0] + found[1]) == [7, 8, 9] and time.monotonic() - begun > SILENT


def test_a_living_one_keeps_what_it_took(joined):
    """However long it takes: three times the silence after which it would count as dead."""
    found = in_threads(
        lambda: slow(joined[0], [1], 3 * SILENT), *(lambda one=one: slow(one, [1], 3 * SILENT) for one in joined[1:])
    )
    assert sorted(map(len, found)) == [0, 0, 1]


def test_the_first_makes_and_all_wait_for_it(joined):
    order = []

    def make():
        time.sleep(0.1)
        order.append("made")
        return 5

    def ask(one):
        made = one.by_the_first(make)
        order.append(one.rank)
        return made

    assert in_threads(*(lambda one=one: ask(one) for one in joined)) == [5, None, None]
    assert order[0] == "made" and [one.is_first for one in joined] == [True, False, False]


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (ConfigError("no: expected one", "  a detail"), ConfigError("no: expected one", "  a detail")),
        (FileNotFoundError(2, "No such file", "x"), OSError("[Errno 2] No such file: 'x'")),
        (KeyError("no"), RuntimeError("KeyError: 'no'")),
    ],
)
def test_what_the_first_raises_is_raised_everywhere(error, elsewhere, joined):
    """rdc's own errors and those of files as such, others by their words: nothing that comes out of the store is unpickled."""

    def fail():
        raise error

    first, *others = in_threads(*(lambda one=one: one.by_the_first(fail) for one in joined))
    assert first is error
    assert [(type(other), other.args) for other in others] == 2 * [(type(elsewhere), elsewhere.args)]


def test_another_comes_first_in_the_place_of_a_dead_one(joined):
    joined[0].close()
    assert in_threads(*(lambda one=one: one.by_the_first(lambda: one.rank) for one in joined[1:])) in (
        [1, None],
        [None, 2],
    )
    leader = next(one for one in joined[1:] if one.is_first)
    other = next(one for one in joined[1:] if one is not leader)
    leader.close()
    other.by_the_first(lambda: None)  # twice
    assert other.is_first


def test_who_may_hold_the_store_leaves_last(store):
    made = [Peers(store, rank, 3, SILENT) for rank in range(3)]
    made[2].close()  # dead
    left = []

    def leave(one, after):
        time.sleep(after)
        one.leave()
        left.append(one.rank)

    in_threads(lambda: leave(made[0], 0), lambda: leave(made[1], 0.2))
    assert left == [1, 0]


def test_a_store_that_is_gone_is_said_in_one_line(joined):
    class Gone:
        def __getattr__(self, name):
            raise ConnectionError("Connection reset by peer")

    joined[1]._store = Gone()
    with pytest.raises(RdcError, match=r"process 1 of 3 lost the store .*ConnectionError.*it goes on"):
        list(joined[1].shared_out([1]))


def test_numbers_add_up_and_silence_is_read(joined, monkeypatch):
    assert [one.add("n", 5) for one in joined] == [5, 10, 15]
    for text, seconds in (("7", 7), ("no", 60), ("-3", 0.1)):
        monkeypatch.setenv("RDC_SILENT_SECONDS", text)
        assert seconds_of_silence() == seconds

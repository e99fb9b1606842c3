# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What one client may use, whose turn it is, and which queries make a batch."""

import time

import pytest

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.mpc.deployment import limits as limits_module
from hf_securerouter.mpc.deployment import query_queue
from hf_securerouter.mpc.deployment.limits import Accounts, Busy, Limits, room_for_queries
from hf_securerouter.mpc.deployment.query_queue import Query, QueryQueue, packed, unpacked


class Line:
    """In place of a channel."""

    ended = False

    def hang_up(self):
        self.ended = True


def test_limits_are_read_from_a_file(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text('{"waiting": 2}')
    assert Limits.load(path) == Limits(waiting=2)
    for text in ("[1]", "{", '{"wating": 2}', '{"waiting": 0}', '{"waiting": true}', '{"waiting": "2"}'):
        path.write_text(text)
        with pytest.raises(SecureRouterValueError, match="`limits`"):
            Limits.load(path)


def test_each_limit_refuses_its_client_alone_and_says_when_to_come_again():
    accounts = Accounts(Limits(connections=2, waiting=2, rows_a_minute=60, bytes_in_flight=100), 1 << 30)
    first, other = accounts.connect("a", Line()), accounts.connect("b", Line())
    accounts.take("a", 60)
    with pytest.raises(Busy, match="bytes_in_flight.*come again in"):
        accounts.take("a", 41)
    accounts.take("b", 41)
    accounts.give_back("a", 60)
    accounts.take("a", 100)
    for _ in range(2):
        accounts.begin(first, 2)
        accounts.end(first)
    with pytest.raises(Busy, match="rows_a_minute.*come again in") as raised:
        accounts.begin(first, 59)
    # 4 rows of 60 are used; of 59 there are 3 too few, at one a second.
    assert raised.value.again == pytest.approx(3, abs=0.5)
    accounts.begin(first, 1)
    accounts.begin(first, 1)
    with pytest.raises(Busy, match="waiting"):
        accounts.begin(first, 1)
    accounts.begin(other, 1)
    accounts.connect("a", Line())
    with pytest.raises(Busy, match="connections"):
        accounts.connect("a", Line())


def test_the_queries_of_all_clients_have_room_for_so_many_bytes():
    accounts = Accounts(Limits(bytes_in_flight=100), 160)
    accounts.take("a", 60)
    with pytest.raises(Busy, match="160 bytes of queries of all clients.*come again in"):
        accounts.take("a", 21)  # more than would stay free for the others
    accounts.take("b", 50)
    for name in ("a", "c"):
        with pytest.raises(Busy, match="of all clients"):
            accounts.take(name, 26)
    accounts.take("c", 25)
    accounts.take("d", 0)  # a message without tensors needs no room
    accounts.give_back("a", 60)
    accounts.take("c", 15)


def test_room_for_queries_is_a_part_of_the_memory_and_at_least_two_of_them(monkeypatch):
    assert room_for_queries(4000, 10) == 1000
    assert room_for_queries(4000, 600) == 1200
    monkeypatch.setattr(limits_module, "free_memory", lambda device: 8000)
    assert room_for_queries(None, 10) == 1000
    monkeypatch.setattr(limits_module, "free_memory", lambda device: None)
    assert room_for_queries(None, 10) > 1 << 20


def test_an_idle_connection_gives_way(monkeypatch):
    monkeypatch.setattr(limits_module, "MAX_CLIENTS", 2)
    accounts = Accounts(Limits(), 1 << 30)
    busy, idle = accounts.connect("a", Line()), accounts.connect("b", Line())
    with pytest.raises(Busy, match="2 connections of all clients"):
        accounts.connect("c", Line())
    monkeypatch.setattr(limits_module, "IDLE", 0.0)
    accounts.begin(busy, 1)
    accounts.connect("c", Line())
    assert idle.channel.ended and not busy.channel.ended


def waiting(*queries):
    """A queue of (client, rows), whose ids are 1, 2, 3, ..."""
    queue = QueryQueue(0)
    for number, (name, rows) in enumerate(queries, start=1):
        queue.add(Query(f"{number:032x}", name, rows, {}))
    return queue


def picked(queue, size, max_wait=0.0, theirs=None):
    """Numbers of the queries that are picked, when the other party holds the same ones."""
    found = queue.pick(dict(queue.held()) if theirs is None else theirs, size, max_wait)
    queue.take(found)
    return [int(identity, 16) for identity, _ in found]


def test_clients_take_turns():
    queue = waiting(*[("a", 1)] * 4, ("b", 1), ("c", 1))
    assert picked(queue, 2) == [1, 5]
    assert picked(queue, 2) == [6, 2]
    assert picked(queue, 2) == [3, 4]


def test_a_batch_is_filled_or_waits_for_company():
    queue = waiting(("a", 2), ("b", 3), ("c", 1))
    assert picked(queue, 4, max_wait=60.0) == []  # 3 of 4 rows
    queue = waiting(("a", 2), ("b", 3), ("c", 2))
    assert picked(queue, 4, max_wait=60.0) == [1, 3]
    assert picked(queue, 4, max_wait=60.0) == []
    assert picked(queue, 4, max_wait=0.0) == [2]


def test_only_what_both_parties_hold_is_taken_up(monkeypatch):
    queue = waiting(("a", 1), ("b", 1), ("c", 2))
    theirs = {f"{2:032x}": 1, f"{3:032x}": 1}  # of the third, with another number of rows
    assert picked(queue, 4, theirs=theirs) == [2]
    queue.drop_halves(theirs)
    assert len(queue.held()) == 2
    monkeypatch.setattr(query_queue, "HALF", (0.0, 60.0))
    halves = list(queue._waiting.values())
    queue.drop_halves({halves[1].identity: halves[1].batch})
    assert halves[0].response[0]["again"] > 0 and not halves[1].done.is_set()
    assert [rows for _, rows in queue.held()] == [2]
    seeds = QueryQueue(1)  # at party 1 a half waits for what may be under way to party 0
    seeds.add(Query(f"{1:032x}", "a", 1, {}))
    seeds.drop_halves({})
    assert len(seeds.held()) == 1


def test_a_queue_has_an_end_and_no_id_twice(monkeypatch):
    monkeypatch.setattr(query_queue, "MAX_WAITING", 2)
    queue = waiting(("a", 1))
    with pytest.raises(SecureRouterError, match="waits already"):
        queue.add(Query(f"{1:032x}", "b", 1, {}))
    queue.add(Query(f"{2:032x}", "b", 1, {}))
    with pytest.raises(Busy, match="of all clients"):
        queue.add(Query(f"{3:032x}", "b", 1, {}))


def test_a_list_of_queries_has_one_length_whatever_it_holds():
    held = [("ab" * 16, 3), ("cd" * 16, 700)]
    assert unpacked(packed(held, 5)) == dict(held)
    assert len(packed([], 5)) == len(packed(held, 5)) == len(packed(held * 10, 5))


def test_a_wait_ends_with_the_next_query_or_in_time():
    queue = QueryQueue(0)
    start = time.monotonic()
    queue.wait(0.2, 60.0)
    queue.add(Query("ab" * 16, "a", 1, {}))
    queue.wait(60.0, 0.1)
    assert 0.25 < time.monotonic() - start < 30


def test_queries_of_more_rows_than_the_roles_have_memory_for_fail_at_once():
    queue = waiting(("a", 1), ("a", 3))
    assert queue.most(0.0) is None
    small, large = (query for query in queue._waiting.values())
    queue.limit(2)
    assert queue.most(0.0) == 2 and queue.held() == [(small.identity, 1)] and not small.done.is_set()
    later = Query(f"{7:032x}", "b", 3, {})
    queue.add(later)
    for query in (large, later):
        assert "1 to 2 rows, not 3" in query.response[0]["error"] and query.response[0]["again"] > 0
    queue.limit(None)
    queue.add(Query(f"{8:032x}", "b", 3, {}))
    assert len(queue.held()) == 2 and queue.most(0.0) is None


def test_a_client_that_leaves_takes_its_own_query_along_and_no_later_one_of_its_id():
    queue = waiting(("a", 1))
    (first,) = queue._waiting.values()
    assert queue.take([(first.identity, 1)]) == [first]
    later = Query(first.identity, "a", 1, {})
    queue.add(later)
    assert not queue.withdraw(first) and queue.held() == [(later.identity, 1)]
    assert queue.withdraw(later) and queue.held() == []

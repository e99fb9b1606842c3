# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Sets of tuples in files: used once, whatever happens in between, and gone after use."""

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from two_parties import PROGRAM, at_both, expected, shared

from hf_securerouter import SecureRouterError
from hf_securerouter.mpc.net.link import LinkError
from hf_securerouter.mpc.protocols.masked.evaluator import Evaluator
from hf_securerouter.mpc.ring.randomness import new_seed
from hf_securerouter.mpc.tuples import store as store_module
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.party_set import PartySet, SetLabel, Spool, TupleReusedError
from hf_securerouter.mpc.tuples.store import StoreError, TupleStore, deal_to_stores


PLAN = PROGRAM.plan()
OTHER_PLAN = replace(PLAN, gates=PLAN.gates[:1], correction_bytes=PLAN.correction_bytes[:1])


@pytest.fixture
def stores(tmp_path):
    """The stores of both parties; opened again by `again`."""
    found = Stores(tmp_path)
    yield found
    found.close()


class Stores:
    def __init__(self, folder):
        self.folders = [folder / "party0", folder / "party1"]
        self.open()

    def open(self):
        self.pair = tuple(TupleStore(folder, rank) for rank, folder in enumerate(self.folders))

    def close(self):
        for store in self.pair:
            try:
                store.close()
            except OSError:
                pass

    def again(self):
        self.close()
        self.open()

    def deal(self, count=1):
        deal_to_stores(PLAN, self.pair, count)

    def files(self, rank=0):
        return sorted(self.folders[rank].glob("*.safetensors"))

    def burned(self, rank=0):
        return (self.folders[rank] / "burned").read_text().split()

    def take(self, plans=(PLAN, PLAN)):
        """What each party gets, or the error that it meets."""
        return at_both(lambda rank, link: self.pair[rank].take("test", plans[rank], link))

    def run(self, values):
        words = shared(values)

        def evaluate(rank, link):
            return Evaluator(rank, link, self.pair[rank]).run(PROGRAM, {"x": words[rank]})

        return at_both(evaluate)


def test_gates_run_on_stored_sets(stores):
    stores.deal(2)
    for _ in range(2):
        values = torch.randn(*PROGRAM.inputs["x"].shape) * 3
        assert (expected(stores.run(values)) - values.relu()).abs().max() < 2**-13
    assert len(stores.pair[0]) == len(stores.pair[1]) == 0
    errors = stores.run(values)
    assert all(isinstance(error, StoreError) and "has no set left" in str(error) for error in errors)


def test_a_set_opens_once_and_for_its_plan_only(stores):
    stores.deal()
    first, second = stores.take()
    with pytest.raises(SecureRouterError, match="another plan"):
        first.open(OTHER_PLAN)
    for part in (first, second):
        part.open(PLAN)
        with pytest.raises(TupleReusedError, match=f"Set {part.label.id} has served a run"):
            part.open(PLAN)


def test_stored_corrections_are_those_that_were_dealt(stores):
    seeds = (new_seed(), new_seed())
    dealt = list(deal_set(PLAN, seeds))
    writer = stores.pair[0].add(1, SetLabel.new(PLAN), seeds[0], PLAN.dealer_bytes)
    spool = Spool(PLAN)
    for corrections in dealt:
        writer.write(corrections)
        spool.write(corrections.numpy().data)
    assert not stores.files() and len(stores.pair[0]) == 0  # not there before it is whole
    writer.finish()
    (path,) = stores.files()
    found = stores.pair[0]._use(path, PLAN)
    stored, spooled = found._corrections, spool.finish()
    for read in (stored, spooled, stored):
        # A tensor that was handed out stays readable while others are read.
        tensors = [read(index) for index in range(len(dealt))]
        assert all(torch.equal(*pair) for pair in zip(tensors, dealt, strict=True))
    assert found._seed == seeds[0]


def test_what_arrives_has_the_length_of_the_plan():
    spool = Spool(PLAN)
    spool.write(memoryview(bytes(PLAN.dealer_bytes - 1)))
    with pytest.raises(SecureRouterError, match="ended 1 bytes before its plan"):
        spool.finish()
    with pytest.raises(SecureRouterError, match=f"more than the {PLAN.dealer_bytes} bytes"):
        spool.write(memoryview(bytes(2)))
    spool.write(memoryview(bytes(1)))
    spool.finish()


def test_a_spool_has_no_name_and_asks_for_its_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = Spool(PLAN)
    assert os.fstat(spool._file.fileno()).st_size == PLAN.dealer_bytes
    assert not list(tmp_path.iterdir())
    with pytest.raises(SecureRouterError, match=r"No room for \d+ bytes of tuples .* set TMPDIR"):
        Spool(replace(PLAN, correction_bytes=(1 << 60,)))


def test_folders_and_files_are_private(stores):
    stores.deal()
    for rank, folder in enumerate(stores.folders):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        paths = list(folder.iterdir())
        assert {path.name for path in paths} == {"burned", stores.files(rank)[0].name}
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_party_1_keeps_a_seed_and_no_more(stores):
    stores.deal()
    sizes = [stores.files(rank)[0].stat().st_size for rank in (0, 1)]
    assert sizes[0] - sizes[1] == pytest.approx(PLAN.dealer_bytes, abs=16)  # digits in the header
    assert sizes[1] < 600


def test_a_folder_that_others_can_open_is_refused(stores):
    stores.close()
    stores.folders[0].chmod(0o750)
    with pytest.raises(StoreError, match="open to other users, and holds secrets: `chmod 700"):
        TupleStore(stores.folders[0], 0)


def test_one_process_uses_a_folder_at_a_time(stores):
    with pytest.raises(StoreError, match="Another process uses"):
        TupleStore(stores.folders[0], 0)
    stores.again()


def test_sets_without_a_log_are_refused(stores):
    stores.deal()
    stores.close()
    (stores.folders[0] / "burned").unlink()
    with pytest.raises(StoreError, match="nobody knows which sets were used: delete them and deal new ones"):
        TupleStore(stores.folders[0], 0)


def test_the_mark_is_on_the_disk_before_the_set_is_read(stores, monkeypatch):
    stores.deal()
    events = []

    def sync(descriptor):
        events.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), threading.get_ident()))
        fsync(descriptor)

    def opened(label, rank, seed, *rest, **options):
        assert label.id in stores.burned(rank)
        events.append((f"set {rank}", threading.get_ident()))
        return PartySet(label, rank, seed, *rest, **options)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(store_module, "PartySet", opened)
    stores.take()
    for rank in (0, 1):
        thread = dict(events)[f"set {rank}"]
        names = [name for name, other in events if other == thread]
        assert names[:2] == ["burned", f"party{rank}"]  # the log, then its folder
        assert names[-1] == f"set {rank}"


def test_a_set_leaves_no_trace_after_use(stores):
    stores.deal()
    first, second = stores.take()
    for rank, part in enumerate((first, second)):
        assert [path.name for path in stores.folders[rank].iterdir()] == ["burned"]
        assert stores.burned(rank) == [part.label.id]


def test_the_seed_is_overwritten_before_the_file_goes(stores, monkeypatch, tmp_path):
    stores.deal()
    kept = tmp_path / "kept"
    os.link(stores.files(1)[0], kept)
    before = kept.read_bytes()
    _, part = stores.take()
    assert part._seed in before and part._seed not in kept.read_bytes()


CRASH = """
import os, signal, sys
from hf_securerouter.mpc import store
from hf_securerouter.mpc.store import TupleStore

def burn_and_die(self, identity):
    burn(self, identity)
    os.kill(os.getpid(), signal.SIGKILL)

burn, TupleStore._burn = TupleStore._burn, burn_and_die
folder = TupleStore(sys.argv[1], 0)
folder._use(folder._files()[0], None)
"""


def test_a_set_that_a_crashed_process_marked_is_never_used(stores):
    stores.deal(2)
    marked = stores.files()[0]
    stores.close()
    done = subprocess.run([sys.executable, "-c", CRASH, str(stores.folders[0])], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert stores.files()[0] == marked  # died before it read anything of it
    stores.open()
    assert [path.exists() for path in (marked, stores.files(1)[0])] == [False, True]
    first, second = stores.take()  # both pass to the next one
    assert first.label == second.label and first.label.id != marked.stem[21:]
    assert marked.stem[21:] in stores.burned(0) and marked.stem[21:] in stores.burned(1)
    assert all(isinstance(error, StoreError) for error in stores.take())


@pytest.mark.parametrize("reopened", [False, True])
def test_a_copy_of_a_used_set_is_refused(stores, tmp_path, reopened):
    stores.deal()
    copies = [shutil.copy(stores.files(rank)[0], tmp_path) for rank in (0, 1)]
    used, _ = stores.take()
    for copy, folder in zip(copies, stores.folders, strict=True):
        shutil.copy(copy, folder)
    if reopened:
        stores.again()
    else:
        with pytest.raises(StoreError, match=f"{used.label.id} has been used before"):
            stores.pair[0]._use(stores.files()[0], PLAN)
    assert len(stores.pair[0]) == 0
    assert all(isinstance(error, StoreError) and "no set left" in str(error) for error in stores.take())


def test_a_folder_restored_with_its_log_is_passed_over(stores, tmp_path):
    stores.deal(2)
    stores.close()
    shutil.copytree(stores.folders[0], tmp_path / "snapshot")
    stores.open()
    used, _ = stores.take()
    stores.close()
    shutil.rmtree(stores.folders[0])
    shutil.copytree(tmp_path / "snapshot", stores.folders[0])
    stores.open()
    assert len(stores.pair[0]) == 2 and len(stores.pair[1]) == 1
    first, second = stores.take()
    assert first.label == second.label != used.label
    assert used.label.id in stores.burned()


def test_a_mark_that_a_crash_tore_hides_no_later_one(stores):
    stores.deal()
    stores.close()
    log = stores.folders[0] / "burned"
    log.write_text(stores.files()[0].stem[21:40])  # its process died before the mark was whole, and so before any use
    stores.open()
    first, second = stores.take()
    assert first.label == second.label
    assert stores.burned()[1] == first.label.id
    stores.again()
    assert len(stores.pair[0]) == 0


def test_parties_that_lost_different_sets_meet_at_the_next(stores):
    stores.deal(4)
    for rank, index in ((0, 0), (1, 0), (1, 0)):  # 2 of them at P1, 1 at P0
        stores.files(rank)[index].unlink()
    first, second = stores.take()
    assert first.label == second.label
    assert len(stores.pair[0]) == len(stores.pair[1]) == 1
    stores.files(0)[0].unlink()
    assert all(isinstance(error, StoreError) and "no set left" in str(error) for error in stores.take())


def test_parties_of_different_plans_both_refuse(stores):
    stores.deal()
    errors = stores.take((PLAN, OTHER_PLAN))
    assert all(isinstance(error, StoreError) and "different plans of `test`" in str(error) for error in errors)
    assert len(stores.pair[0]) == len(stores.pair[1]) == 1


def test_sets_that_differ_in_the_nonce_alone_are_refused_and_burned(stores):
    label, seeds = SetLabel.new(PLAN), (new_seed(), new_seed())
    for rank, nonce in ((0, label.nonce), (1, "0" * 32)):
        writer = stores.pair[rank].add(7, replace(label, nonce=nonce), seeds[rank], 0 if rank else PLAN.dealer_bytes)
        for corrections in deal_set(PLAN, seeds) if rank == 0 else ():
            writer.write(corrections)
        writer.finish()
    errors = stores.run(torch.zeros(*PROGRAM.inputs["x"].shape))
    assert all(isinstance(error, LinkError) and "do not agree on: `nonce`" in str(error) for error in errors)
    assert stores.burned(0) == stores.burned(1) == [label.id]


def test_a_dealer_that_fails_leaves_no_half_set(stores, monkeypatch):
    def half(*arguments):
        yield next(deal_set(*arguments))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "deal_set", half)
    with pytest.raises(OSError, match="No space"):
        stores.deal()
    assert [[path.name for path in folder.iterdir()] for folder in stores.folders] == [["burned"], ["burned"]]


def test_a_half_written_set_of_a_dead_dealer_goes(stores):
    stores.pair[0].add(1, SetLabel.new(PLAN), new_seed(), PLAN.dealer_bytes)
    stores.again()
    assert [path.name for path in stores.folders[0].iterdir()] == ["burned"]


@pytest.mark.parametrize("damage", ["cut", "garbage", "renamed"])
def test_a_damaged_file_is_named(stores, damage):
    stores.deal()
    path = stores.files()[0]
    if damage == "renamed":
        path.rename(path.with_name(f"{path.name[:21]}{'0' * 32}.safetensors"))
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"\xff" * 100)
    with socket.socket() as unused, pytest.raises(StoreError, match="delete it"):
        stores.pair[0].take("test", PLAN, unused)


def test_ids_and_seeds_are_fresh(stores):
    stores.deal(3)
    labels = [store_module._label_of(path) for path in stores.files()]
    assert len({label.id for label in labels}) == len({label.nonce for label in labels}) == 3
    assert [store_module._label_of(path) for path in stores.files(1)] == labels
    contents = [path.read_bytes() for rank in (0, 1) for path in stores.files(rank)]
    seeds = {data[8 + int.from_bytes(data[:8], "little") :][:32] for data in contents}
    assert len(seeds) == 6


def test_the_lock_ends_with_its_process(stores):
    stores.close()
    descriptor = os.open(stores.folders[0] / "burned", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="Another process"):
        TupleStore(stores.folders[0], 0)
    os.close(descriptor)
    stores.open()

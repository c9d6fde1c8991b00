"""Locks on files that are removed and replaced meanwhile."""

import fcntl
import os
import threading

import pytest

from data_sharding.errors import DataError
from data_sharding.io.file_lock import (
    exclusive_lock,
    is_same_file,
    remove_if_unlocked,
    shared_lock,
)
from data_sharding.io.node_files import make_private, node_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def waiting(context, seen):
    """Start a thread that enters a context and notes what it was given; wait until it waits."""

    def enter():
        with context as file:
            seen.append(file is not None and os.fstat(file.fileno()).st_ino)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    return thread


def test_an_exclusive_lock_has_one_holder(path):
    with exclusive_lock(path) as file:
        assert file
        assert is_same_file(file, path)
        with exclusive_lock(path, wait=False) as other:
            assert other is None
        assert not remove_if_unlocked(path)
    with exclusive_lock(path, wait=False) as file:
        assert file


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_waiting_process_locks_the_successor_of_a_replaced_file(path, tmp_path, is_replaced):
    seen = []
    with exclusive_lock(path) as file:
        old = os.fstat(file.fileno()).st_ino
        thread = waiting(exclusive_lock(path), seen)
        path.rename(tmp_path / "published")
        if is_replaced:
            path.touch()
    thread.join()
    assert seen == [path.stat().st_ino] != [old]


def test_a_file_removed_before_it_was_locked_is_missing(path):
    path.touch()
    seen = []
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = waiting(shared_lock(path), seen)
        path.unlink()
    thread.join()
    assert seen == [False]


def test_a_file_with_a_shared_lock_is_not_removed(path):
    path.touch()
    with shared_lock(path) as one, shared_lock(path) as another:
        assert one
        assert another
        assert not remove_if_unlocked(path)
    assert remove_if_unlocked(path)
    assert remove_if_unlocked(path)
    with shared_lock(path) as file:
        assert file is None


def test_a_private_directory_is_for_this_user_alone(tmp_path):
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "a" / "b")


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(DataError) as raised:
        make_private(tmp_path)
    assert raised.value.value == tmp_path


def test_a_file_that_the_node_has_is_checked_without_its_lock(tmp_path):
    path = tmp_path / "user" / "tables" / "a"
    node_file(path, "lock", lambda path: True, lambda: b"first")

    def read() -> bytes:
        raise AssertionError("it is there")

    check = threading.Thread(
        target=node_file, args=(path, "lock", lambda path: True, read), daemon=True
    )
    with exclusive_lock(path.with_name("lock")):
        check.start()
        check.join(timeout=5)
        assert not check.is_alive()
    node_file(path, "lock", lambda path: path.read_bytes() == b"second", lambda: b"second")
    assert path.read_bytes() == b"second"

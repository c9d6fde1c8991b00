"""Locks on files that are removed and replaced meanwhile."""

import fcntl
import os
import threading

import pytest

from data_sharding.errors import DataError
from data_sharding.io.file_lock import (
    exclusive_lock,
    is_same_file,
    make_private,
    remove_if_unlocked,
    shared_lock,
)


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


def test_one_at_a_time_holds_a_file(path):
    with exclusive_lock(path) as file:
        assert file
        assert is_same_file(file, path)
        with exclusive_lock(path, wait=False) as other:
            assert other is None
        assert not remove_if_unlocked(path)
    with exclusive_lock(path, wait=False) as file:
        assert file


@pytest.mark.parametrize("is_replaced", [False, True])
def test_who_waited_for_a_file_that_is_gone_holds_its_successor(path, tmp_path, is_replaced):
    seen = []
    with exclusive_lock(path) as file:
        old = os.fstat(file.fileno()).st_ino
        thread = waiting(exclusive_lock(path), seen)
        path.rename(tmp_path / "published")
        if is_replaced:
            path.touch()
    thread.join()
    assert seen == [path.stat().st_ino] != [old]


def test_what_was_removed_before_it_could_be_pinned_is_not_there(path):
    path.touch()
    seen = []
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = waiting(shared_lock(path), seen)
        path.unlink()
    thread.join()
    assert seen == [False]


def test_what_is_pinned_is_not_removed(path):
    path.touch()
    with shared_lock(path) as one, shared_lock(path) as another:
        assert one
        assert another
        assert not remove_if_unlocked(path)
    assert remove_if_unlocked(path)
    assert remove_if_unlocked(path)
    with shared_lock(path) as file:
        assert file is None


def test_a_directory_is_made_for_this_user_alone(tmp_path):
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "a" / "b")


def test_a_directory_of_somebody_else_is_refused(tmp_path, monkeypatch):
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(DataError, match="belongs to the user"):
        make_private(tmp_path)

"""Our headers are those of the standard library, and tar reads what is written."""

import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sharding.format.tar_writer import TarStream, header

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=120)


def by_tarfile(name: str, num_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = num_bytes, 0o444
    member.uname = member.gname = "tahoe"
    return member.tobuf(tarfile.USTAR_FORMAT)


@given(NAMES, st.integers(0, 8**11 + 5))
def test_headers_are_those_of_tarfile(name: str, num_bytes: int) -> None:
    try:
        expected = by_tarfile(name, num_bytes)
    except ValueError:
        with pytest.raises(ValueError):
            header(name, num_bytes)
        return
    assert header(name, num_bytes) == expected


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}(/[a-z]{60}){0,2}\.jpg", fullmatch=True),
                       st.binary(max_size=2000), max_size=12))  # fmt: skip
def test_a_tar_as_tarfile_writes_it(members: dict[str, bytes]) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    stream = TarStream(ours)
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            stream.add(name, data)
            tar.addfile(tarfile.TarInfo.frombuf(by_tarfile(name, len(data)), "utf-8", "strict"),
                        io.BytesIO(data))  # fmt: skip
    stream.finish()
    assert ours.getvalue() == theirs.getvalue()
    assert stream.num_bytes == len(ours.getvalue())
    assert stream.sha256.digest() == hashlib.sha256(ours.getvalue()).digest()

"""A cable between two TAP devices that delays what comes from the first.

    python delay_relay.py HOST_DEVICE PORT_DEVICE

Makes both devices, prints a line, and takes delays in ms from its standard input, until that ends.
TCP segments pass uncut, as through a network card that cuts them, so this process can carry 1 Gb/s.
"""

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_CSUM_TSO4_TSO6 = 0x01 | 0x02 | 0x04
_MAX_FRAME = 65536 + 64


def open_tap(name: str) -> int:
    """Make a TAP device; return the file that its frames are read from and written to."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(file, _TUNSETOFFLOAD, _CSUM_TSO4_TSO6)
    return file


def carry(host: int, port: int, control: int) -> None:
    """Carry frames both ways until the control file ends."""
    delay_s, waiting = 0.0, deque[tuple[float, bytes]]()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([host, port, control], [], [], timeout)
        if host in readable:
            due_s = time.monotonic() + delay_s
            waiting.extend((due_s, frame) for frame in read_all(host))
        if port in readable:
            for frame in read_all(port):
                write(host, frame)
        while waiting and waiting[0][0] <= time.monotonic():
            write(port, waiting.popleft()[1])
        if control in readable:
            line = os.read(control, 100)
            if not line:
                return
            delay_s = float(line.split()[-1]) / 1000


def read_all(file: int) -> list[bytes]:
    frames = []
    with suppress(BlockingIOError):
        while len(frames) < 16:  # the other direction waits meanwhile
            frames.append(os.read(file, _MAX_FRAME))
    return frames


def write(file: int, frame: bytes) -> None:
    with suppress(OSError):  # a device that is down loses frames
        os.write(file, frame)


if __name__ == "__main__":
    files = [open_tap(name) for name in sys.argv[1:]]
    print("ready", flush=True)
    carry(*files, sys.stdin.fileno())

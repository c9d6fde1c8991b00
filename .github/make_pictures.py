"""Draw the README's pictures anew from the runs of `make demo`: `make pictures`; needs chromium."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

TAHOE = Path(sys.executable).with_name("tahoe")
IMAGES = Path(__file__).parent / "images"
RUNS = ("runs/demo-lenet5_1998", "runs/demo-resnet18")
WIDTH = 112  # characters of the terminal
PORT = 5179


def draw_terminal() -> None:
    """Draw the end of the demo as a terminal shows it: the comparison of its two runs."""
    command = ("compare", *RUNS)
    done = subprocess.run(
        [TAHOE, *command],
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
        capture_output=True,
        text=True,
        check=True,
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(f"$ tahoe {' '.join(command)}")
    console.print(Text.from_ansi(done.stdout))
    console.save_svg(str(IMAGES / "terminal.svg"), title="tahoe compare")


def wait_for_server(timeout_s: float = 60) -> None:
    """Wait until MLflow accepts connections."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=5).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def draw_mlflow() -> None:
    """Draw MLflow's page of the first run, from a server that ends afterwards."""
    server = subprocess.Popen(
        [TAHOE, "ui", RUNS[0], "--port", str(PORT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        page = next(match[0] for line in server.stdout if (match := re.match(r"http\S+", line)))
        wait_for_server()
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            sys.exit("error: chromium is not installed, so MLflow's page cannot be drawn")
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--hide-scrollbars"),
                *("--window-size=1500,1000", "--virtual-time-budget=20000"),
                *(f"--screenshot={IMAGES / 'mlflow.png'}", page),
            ],
            check=True,
        )
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    shutil.copy("curves.png", IMAGES / "curves.png")
    draw_terminal()
    draw_mlflow()


if __name__ == "__main__":
    main()

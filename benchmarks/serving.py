"""What the benchmarks of the browser share: waiting for a server of their own."""

from __future__ import annotations

import subprocess
import time
import urllib.request


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Returns once a server answers; raises RuntimeError where it ended, TimeoutError after three minutes."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with {server.returncode}") from None
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the server did not answer within three minutes")

"""Some clients in threads, in a process of its own that loads nothing else; used by serve_load.py."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path


def main(port: int, path: str, body_file: str, content_type: str, clients: int, seconds: float) -> None:
    """Wait for a line, send requests, and write the time of each and the number of failures."""
    body = Path(body_file).read_bytes()
    times: list[float] = []
    failed: list[int] = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    end = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (start := time.perf_counter()) < end:
            connection.request("POST", path, body, {"Content-Type": content_type})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                times.append(time.perf_counter() - start)
            else:
                failed.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"times": times, "failed": failed}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5]), float(sys.argv[6]))

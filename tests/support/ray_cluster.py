"""A Ray cluster of several nodes on this machine: each has an address of its own on the loopback device."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

HEAD = "127.0.0.2"


class Cluster:
    """Nodes that `ray start` starts; token authentication is on. The caller's environment gets the token."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self.address = f"{HEAD}:{self.port}"
        self.environment = {
            "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }  # fmt: skip
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, address: str = HEAD, cpus: int = 1) -> None:
        """Start a node, and wait until it is part of the cluster."""
        where = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        if address != HEAD:
            where = [f"--address={self.address}"]
        command = [
            str(Path(sys.executable).with_name("ray")), "start", *where, f"--node-ip-address={address}",
            f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000", "--block",
            f"--temp-dir={self.home}/t" if address == HEAD else "--disable-usage-stats",
        ]  # fmt: skip
        with (self.home / f"{address}.log").open("wb") as log:
            self.nodes[address] = subprocess.Popen(
                command, env=os.environ | self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._wait(address)

    def kill(self, address: str) -> None:
        """SIGKILL a node: all its processes."""
        ended = self.nodes.pop(address)
        node = psutil.Process(ended.pid)
        for process in [*node.children(recursive=True), node]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        ended.wait()

    def stop(self) -> None:
        """End all nodes."""
        for address in list(self.nodes):
            self.kill(address)

    def _wait(self, address: str) -> None:
        text = self.home / f"{address}.log"
        until = time.monotonic() + 90
        while "Ray runtime started" not in text.read_text("utf-8", "replace"):
            assert self.nodes[address].poll() is None, text.read_text("utf-8", "replace")
            assert time.monotonic() < until, text.read_text("utf-8", "replace")
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HEAD, 0))
        port = int(one.getsockname()[1])
    return port if not 10002 <= port <= 19999 else _free_port()

"""An MLflow server of a test, over a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from local_servers import free_ports, wait_until_it_answers


class Store:
    """An MLflow server over a folder, that can be killed and started again at the same port."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        (self.port,), self.host = free_ports(1), host
        self.folder, self.log = folder, folder / "server.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        if self.host != "127.0.0.1":  # MLflow answers to loopback's names alone, unless it is told otherwise
            command += ["--host", self.host, "--allowed-hosts", f"{self.host}:{self.port}"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'store.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with self.log.open("a") as log:
            # Without its seven processes for jobs, which nothing here asks for.
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self._server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_until_it_answers(self.port, self._server, self.log, host=self.host)

    def kill(self) -> None:
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

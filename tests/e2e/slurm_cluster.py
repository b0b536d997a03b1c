"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd from the distribution's packages."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psutil

from tau2_lightning.launch.net import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
UP_SECONDS = 60.0


def missing() -> list[str]:
    """Programs that are not installed (Debian: slurmctld slurmd slurm-client munge)."""
    places = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=places) is None]


class SlurmCluster:
    """Context manager; ``environment`` is what a client needs. Nodes n1 and n2 have one CPU each, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(self._configuration(munge / "socket"))
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir()
        files = [f"--{option}-file={munge / option}" for option in ("pid", "seed", "log")]
        try:
            self._start(
                "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", f"--key-file={key}", *files
            )
            self._wait(lambda: (munge / "socket").exists(), "munged")
            self._start("slurmctld", "-D")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            self._wait(lambda: self.ask("sinfo", "-h", "-o", "%T %D").strip() == "idle 2", "two idle nodes")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ask("scancel", "--state=RUNNING", "--signal=KILL", f"--user={getpass.getuser()}")
        self.ask("scancel", f"--user={getpass.getuser()}")
        ends = time.monotonic() + 10
        while self.ask("squeue", "-h").strip() and time.monotonic() < ends:
            time.sleep(0.2)
        for daemon in self._daemons:
            daemon.terminate()
        # slurmd runs its steps in processes of their own, which would wait for the controller after its end.
        for step in self._steps():
            step.kill()
        for daemon in self._daemons:
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _steps(self) -> list[psutil.Process]:
        mine = str(self.folder)
        return [
            process
            for process in psutil.process_iter(["name", "environ"])
            if process.info["name"] == "slurmstepd" and mine in str(process.info["environ"])
        ]

    def ask(self, *command: str) -> str:
        """Output of a Slurm client; empty when it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def state(self, job: str) -> str:
        """``RUNNING``, ``COMPLETED`` ...; empty when Slurm has removed the job."""
        fields = dict(word.partition("=")[::2] for word in self.ask("scontrol", "show", "job", job).split())
        return fields.get("JobState", "")

    def logs(self, lines: int = 40) -> str:
        """Tails of the daemons' logs, for a failing test."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + "\n".join(file.read_text().splitlines()[-lines:]) for file in files)

    def _start(self, *command: str) -> None:
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None
        with (self.folder / f"{'-'.join([command[0], *command[-1:]]).replace('/', '_')[-40:]}.out").open("wb") as out:
            daemon = subprocess.Popen(
                [program, *command[1:]], env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self._daemons.append(daemon)

    def _wait(self, done: object, what: str) -> None:
        assert callable(done)
        ends = time.monotonic() + UP_SECONDS
        while not done():
            assert time.monotonic() < ends, f"Slurm: {what} did not come up\n{self.logs()}"
            time.sleep(0.2)

    def _configuration(self, munge_socket: Path) -> str:
        host, user, at = socket.gethostname(), getpass.getuser(), self.folder
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={free_port('127.0.0.1')}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            # A requeued job waits until its old credentials have expired: 120 s by default.
            f"AuthInfo=socket={munge_socket},cred_expire=5",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "MpiDefault=none",
            "SchedulerParameters=sched_interval=2",
            "ReturnToService=2",
            "KillWait=30",
            f"StateSaveLocation={at}/state",
            f"SlurmdSpoolDir={at}/spool-%n",
            f"SlurmctldPidFile={at}/slurmctld.pid",
            f"SlurmdPidFile={at}/slurmd-%n.pid",
            f"SlurmctldLogFile={at}/slurmctld.log",
            f"SlurmdLogFile={at}/slurmd-%n.log",
            "SlurmdParameters=config_overrides",
            *(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port('127.0.0.1')}"
                " CPUs=1 RealMemory=8000"
                for name in ("n1", "n2")
            ),
            "PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP",
        ]
        return "\n".join(lines) + "\n"

"""A Ray cluster of several hosts, simulated by namespaces with their own address, name, processes and mounts.

Slow, and skipped if namespaces cannot be created (which needs root and iproute2) or Ray is not installed.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import clipfake
import pytest
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.store import Store
from indexed import contents, store_at, write_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PACKAGE = Path(clipfake.__file__).parent
PORT = 6379
IMAGES = 3000


class Lan:
    """Network switch to which hosts are connected. All of it ends with this process, see `Host`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"  # of the user, the same on every host
        (self.home / ".ray").mkdir(parents=True)
        (self.home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
        self.hosts: list[Host] = []
        self.begun: list[subprocess.Popen[str]] = []
        self.switch, self.pid = namespaces("--net", "ip link add lan type bridge && ip link set lan up")

    def ip(self, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.pid), "--net", "ip", *command], check=True)

    def host(self, setup: str = "true") -> "Host":
        self.hosts.append(Host(self, len(self.hosts) + 1, setup))
        return self.hosts[-1]

    def cluster(self, *setups: str) -> tuple["Host", ...]:
        """Start a head node, which also runs the driver, and a host with a worker for each setup."""
        head, *others = self.host(), *(self.host(setup) for setup in setups)
        started(head.start_ray())
        for process in [other.start_ray(head) for other in others]:
            started(process)
        return head, *others

    def close(self) -> None:
        for host in self.hosts:
            host.kill()
        end(self.switch)
        for process in self.begun:  # their hosts are gone
            process.communicate()


class Host:
    """Simulated machine. Its first process reads its input to the end, so it and all others end with ours."""

    def __init__(self, lan: Lan, number: int, setup: str) -> None:
        self.lan, self.name, self.address = lan, f"host{number}", f"10.213.77.{number}"
        own = lan.folder / self.name
        own.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)  # location of Ray's sockets, as our path would be too long for them
        mounts = f"hostname {self.name} && mount -t tmpfs shm /dev/shm && mount --bind {own} /tmp/ray && {setup}"
        self.first, self.pid = namespaces("--net --uts --mount --pid --fork --mount-proc", mounts)
        self.cable = f"to{number}"
        lan.ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        lan.ip("link", "set", self.cable, "master", "lan", "up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run(["nsenter", "-t", str(self.pid), "--net", "ip", *command.split()], check=True)

    def begin(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a command on this host."""
        inside = ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", "--pid", f"--wd={self.lan.folder}"]
        own = {"HOME": str(self.lan.home), "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
        env = {**os.environ, **own}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.lan.begun.append(subprocess.Popen([*inside, *command], text=True, env=env, **pipes, **options))  # type: ignore[call-overload]
        return self.lan.begun[-1]

    def start_ray(self, head: "Host | None" = None) -> "subprocess.Popen[str]":
        """Start Ray as a member of the head's cluster, or as the head node, which has no workers."""
        result = [f"--address={head.address}:{PORT}"] if head else ["--head", f"--port={PORT}"]
        common = ["--disable-usage-stats", "--object-store-memory=80000000", f"--num-cpus={1 if head else 0}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.address}"]
        return self.begin(*ray, *result, *common, env={"RAY_AUTH_MODE": "token"})

    def index(self, head: "Host", folder: Path, store: Path, *options: str) -> "Driver":
        return Driver(self, head, folder, store, *options)

    def workers(self) -> list[int]:
        """Process ids of the Ray workers that embed."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        processes = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if b"ray::Worker" in (process / "cmdline").read_bytes() and (process / "ns/pid").readlink() == own:
                    processes.append(int(process.name))
        return processes

    def kill(self) -> None:
        """Kill all processes, as a power failure does."""
        end(self.first)

    def silence(self) -> None:
        """Disconnect the network."""
        self.lan.ip("link", "set", self.cable, "down")


class Driver:
    """`clipfake index --engine ray` on a host."""

    def __init__(self, host: Host, head: Host, folder: Path, store: Path, *options: str) -> None:
        self.log = host.lan.folder / f"{len(list(host.lan.folder.iterdir()))}.jsonl"
        command = [sys.executable, "-m", "clipfake", "index", "--folders", str(folder), "--store", str(store)]
        command += ["--encoder", "plain", "--engine", "ray", "--address", f"{head.address}:{PORT}", "--threads", "1"]
        command += ["--rows-per-shard", "10", "--json", "--log-json", str(self.log)]
        self.printed = ""
        self.process = host.begin(*command, *options)

    def has_stored(self, rows: int) -> None:
        """Wait until `rows` are stored."""
        while self.process.poll() is None:
            lines = self.log.read_text().splitlines() if self.log.exists() else []
            if any(json.loads(line).get("added", 0) >= rows for line in lines if line.endswith("}")):
                return
            threading.Event().wait(0.05)
        pytest.fail(f"it ended before it had stored {rows} rows: {self.process.communicate()}")

    def signal(self, number: int) -> None:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)

    def report(self) -> dict[str, Any]:
        out, self.printed = self.process.communicate(timeout=200)
        assert self.process.returncode == 0, self.printed
        return dict(json.loads(out))

    def error(self) -> str:
        _, self.printed = self.process.communicate(timeout=200)
        assert self.process.returncode == 1, self.printed
        return self.printed


def namespaces(kinds: str, setup: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a process in new namespaces; returns it and its process id once they are set up."""
    command = ["unshare", *kinds.split(), "sh", "-c", f"{setup} && echo up && exec cat"]
    first = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stderr is not None
    if first.stdout.readline() != "up\n":
        pytest.skip(f"namespaces cannot be created: {first.communicate()[1].strip()}")
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    return first, int(children[0]) if children else first.pid


def started(process: "subprocess.Popen[str]") -> None:
    """Wait until Ray has started."""
    result = process.communicate(timeout=120)
    assert process.returncode == 0, result


def end(first: "subprocess.Popen[str]") -> None:
    """End the first process of namespaces, and with it all others in them."""
    if first.poll() is not None:
        return
    for number in [*Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split(), first.pid]:
        os.kill(int(number), signal.SIGKILL)  # type: ignore[call-overload]
    first.communicate()


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    try:
        new_lan = Lan(tmp_path)
    except FileNotFoundError as e:
        pytest.skip(f"hosts cannot be created: {e.filename} is not installed")
    try:
        yield new_lan
    finally:
        new_lan.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_images(tmp_path_factory.mktemp("data") / "p", IMAGES)
    (path / "bad.jpg").write_text("no image")
    return path


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Store indexed by one process."""
    store = store_at(tmp_path_factory.mktemp("whole") / "s")
    index([folder], store, PlainEncoder())
    return store


def same(store: Path, whole: Store) -> bool:
    """True if every row is stored once, with the right vector and thumbnail."""
    opened = Store.open(store)
    assert not list((store / "incoming").glob("*.h5"))
    return contents(opened) == contents(whole) and thumbnails_of(opened) == thumbnails_of(whole)


def thumbnails_of(store: Store) -> dict[str, bytes]:
    snapshot = store.snapshot()
    return dict(zip(snapshot.rows.keys.tolist(), snapshot.thumbnails(range(len(snapshot))), strict=True))  # type: ignore[arg-type]


def test_three_hosts_store_the_same_as_one_process(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, *_ = lan.cluster("true", "true", "true")
    driver = head.index(head, folder, tmp_path / "s")
    report = driver.report()
    assert (report["added"], [bad["key"] for bad in report["skipped"]]) == (IMAGES, ["p/bad.jpg"])
    assert sorted(worker.split()[0] for worker in report["workers"]) == ["host2", "host3", "host4"]
    assert report["lost"] == []
    assert same(tmp_path / "s", whole)
    assert driver.printed == ""


def test_killed_host_loses_no_row(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, _, lost, _ = lan.cluster("true", "true", "true")
    driver = head.index(head, folder, tmp_path / "s")
    driver.has_stored(100)
    lost.kill()
    report = driver.report()
    assert report["added"] == IMAGES
    assert sorted(worker.split()[0] for worker in report["workers"]) == ["host2", "host4"]
    assert len(report["lost"]) == 1
    assert report["lost"][0].startswith("host3 process ")
    assert same(tmp_path / "s", whole)


def test_silent_host_is_given_up(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, _, silent = lan.cluster("true", "true")
    driver = head.index(head, folder, tmp_path / "s")
    driver.has_stored(100)
    silent.silence()
    report = driver.report()
    assert report["added"] == IMAGES
    assert [worker.split()[0] for worker in report["workers"]] == ["host2"]
    assert any(summary.startswith("host3 process ") for summary in report["lost"])
    assert same(tmp_path / "s", whole)


@pytest.mark.parametrize("how", ["kill", "silence"])
def test_run_without_head_ends_and_can_be_resumed(
    lan: Lan, folder: Path, whole: Store, tmp_path: Path, how: str
) -> None:
    head, other, place = lan.cluster("true", "true")
    driver = place.index(head, folder, tmp_path / "s")
    driver.has_stored(100)
    for worker in [*other.workers(), *place.workers()]:
        os.kill(worker, signal.SIGSTOP)  # otherwise they could finish before the loss is noticed
    getattr(head, how)()
    error = driver.error()
    assert f"the Ray head node at {head.address}:{PORT} no longer answers" in error
    assert "Traceback" not in error
    assert 100 <= len(contents(Store.open(tmp_path / "s"))) < IMAGES
    new, _ = lan.cluster("true")
    report = new.index(new, folder, tmp_path / "s").report()
    assert report["known"] >= 100
    assert same(tmp_path / "s", whole)


def test_late_host_gets_work(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, first = lan.cluster("true")
    late = lan.host()
    driver = head.index(head, folder, tmp_path / "s")
    driver.has_stored(50)
    [worker] = first.workers()
    os.kill(worker, signal.SIGSTOP)  # otherwise it could finish before the other starts
    started(late.start_ray(head))
    driver.has_stored(1000)
    os.kill(worker, signal.SIGCONT)
    report = driver.report()
    assert sorted(worker.split()[0] for worker in report["workers"]) == ["host2", "host3"]
    assert same(tmp_path / "s", whole)


def test_host_without_the_images_is_excluded(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, *_ = lan.cluster("true", f"mount -t tmpfs none {folder}")
    report = head.index(head, folder, tmp_path / "s").report()
    assert [bad["key"] for bad in report["skipped"]] == ["p/bad.jpg"]
    assert [worker.split()[0] for worker in report["workers"]] == ["host2"]
    assert len(report["lost"]) == 1
    assert report["lost"][0].startswith("host3 was excluded: it could read none of the ")
    assert same(tmp_path / "s", whole)


def test_host_without_the_store_is_excluded(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    head, *_ = lan.cluster("true", f"mount -t tmpfs none {tmp_path / 'shared'}")
    report = head.index(head, folder, tmp_path / "shared" / "s").report()
    assert [worker.split()[0] for worker in report["workers"]] == ["host2"]
    assert report["lost"][0].startswith("host3 was excluded: its shard is not in ")
    assert same(tmp_path / "shared" / "s", whole)


def test_run_ends_if_no_host_sees_the_images(lan: Lan, folder: Path, tmp_path: Path) -> None:
    head, *_ = lan.cluster(f"mount -t tmpfs none {folder}")
    error = head.index(head, folder, tmp_path / "s").error()
    assert "no usable host remains: host2 was excluded: it could read none of the " in error
    assert not (tmp_path / "s" / "quarantine.tsv").exists()


def test_host_with_different_software_is_named(lan: Lan, folder: Path, tmp_path: Path) -> None:
    encoder, other_encoder = build_standin(tmp_path / "a", seed=0), build_standin(tmp_path / "b", seed=1)
    (tmp_path / "older.py").write_text('__version__ = "0.0.9"\n')
    (tmp_path / "absent.py").write_text("raise ModuleNotFoundError(\"No module named 'clipfake'\", name='clipfake')\n")
    package = PACKAGE / "__init__.py"
    head, _ = lan.cluster("true")
    for setup, message in {
        f"mount --bind {tmp_path / 'absent.py'} {package}": "host3: clipfake is not installed there",
        f"mount --bind {tmp_path / 'older.py'} {package}": "host4 has clipfake 0.0.9",
        f"mount --bind {other_encoder} {encoder}": "have different encoders of the same name",
        f"mount -t tmpfs none {encoder}": f"host6: the encoder {encoder} cannot be loaded",
    }.items():
        host = lan.host(setup)
        started(host.start_ray(head))
        error = head.index(head, folder, tmp_path / "s", "--encoder", str(encoder)).error()
        assert message in error
        assert host.name in error
        host.kill()


def test_ctrl_c_stores_tasks_and_ends_workers(lan: Lan, folder: Path, tmp_path: Path) -> None:
    head, other, _ = lan.cluster("true", "true")
    driver = head.index(head, folder, tmp_path / "s")
    driver.has_stored(100)
    driver.signal(signal.SIGINT)
    out, error = driver.process.communicate(timeout=100)
    assert driver.process.returncode == 130, error
    assert error.startswith("stopped; ")
    assert json.loads(out)["added"] == len(contents(Store.open(tmp_path / "s")))
    assert not list((tmp_path / "s" / "incoming").iterdir())
    for _ in range(100):
        if "ray::Worker" not in (result := other.begin("ps", "ax").communicate()[0]):
            return
        threading.Event().wait(0.1)
    pytest.fail(result)


def test_two_hosts_index_parts_into_one_store(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipfake", "index", "--folders", str(folder), "--store", str(tmp_path / "s")]
    command += ["--encoder", "plain", "--threads", "1", "--rows-per-shard", "100", "--json", "--part"]
    result = [part.communicate(timeout=100) for part in [lan.host().begin(*command, f"{i}/2") for i in (1, 2)]]
    assert sum(json.loads(out)["added"] for out, _ in result) == IMAGES
    assert same(tmp_path / "s", whole)

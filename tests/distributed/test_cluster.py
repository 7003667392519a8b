"""Many machines, as namespaces of this one: each host has its address, name, processes and mounts, and shares the disk.

Slow, and skipped where namespaces cannot be made (that takes root and iproute2) or Ray is not installed.
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
from indexed import contents, pictures, store_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PACKAGE = Path(clipfake.__file__).parent
PORT = 6379
IMAGES = 3000


class Lan:
    """A switch with nothing on it yet. All of it ends with this process, whatever ends that: see `Host`."""

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
        """A head, on which the driver is, and so many hosts with workers."""
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
    """A machine: its first process waits for the end of its input, so it ends with ours and all of its own with it."""

    def __init__(self, lan: Lan, number: int, setup: str) -> None:
        self.lan, self.name, self.address = lan, f"host{number}", f"10.213.77.{number}"
        own = lan.folder / self.name
        own.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray puts its sockets, for which a path of ours is too long
        mounts = f"hostname {self.name} && mount -t tmpfs shm /dev/shm && mount --bind {own} /tmp/ray && {setup}"
        self.first, self.pid = namespaces("--net --uts --mount --pid --fork --mount-proc", mounts)
        self.cable = f"to{number}"
        lan.ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        lan.ip("link", "set", self.cable, "master", "lan", "up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run(["nsenter", "-t", str(self.pid), "--net", "ip", *command.split()], check=True)

    def begin(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        """Begin a command on this host."""
        inside = ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", "--pid", f"--wd={self.lan.folder}"]
        own = {"HOME": str(self.lan.home), "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
        env = {**os.environ, **own}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.lan.begun.append(subprocess.Popen([*inside, *command], text=True, env=env, **pipes, **options))  # type: ignore[call-overload]
        return self.lan.begun[-1]

    def start_ray(self, head: "Host | None" = None) -> "subprocess.Popen[str]":
        """Begin to start it, as a member of the head's cluster, or as the head, which works for the driver alone."""
        result = [f"--address={head.address}:{PORT}"] if head else ["--head", f"--port={PORT}"]
        common = ["--disable-usage-stats", "--object-store-memory=80000000", f"--num-cpus={1 if head else 0}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.address}"]
        return self.begin(*ray, *result, *common, env={"RAY_AUTH_MODE": "token"})

    def index(self, head: "Host", folder: Path, store: Path, *options: str) -> "Driver":
        return Driver(self, head, folder, store, *options)

    def workers(self) -> list[int]:
        """The processes of its Ray workers that embed."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if b"ray::Worker" in (process / "cmdline").read_bytes() and (process / "ns/pid").readlink() == own:
                    found.append(int(process.name))
        return found

    def kill(self) -> None:
        """Pull its plug."""
        end(self.first)

    def silence(self) -> None:
        """Pull its network cable."""
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
        """Wait until it has stored so many rows."""
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
    """A process that is the first in namespaces of its own, and its number, once they are set up."""
    command = ["unshare", *kinds.split(), "sh", "-c", f"{setup} && echo up && exec cat"]
    first = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stderr is not None
    if first.stdout.readline() != "up\n":
        pytest.skip(f"namespaces cannot be made here: {first.communicate()[1].strip()}")
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    return first, int(children[0]) if children else first.pid


def started(process: "subprocess.Popen[str]") -> None:
    """Wait until Ray is."""
    result = process.communicate(timeout=120)
    assert process.returncode == 0, result


def end(first: "subprocess.Popen[str]") -> None:
    """End the first process of namespaces, and with it all others there."""
    if first.poll() is not None:
        return
    for number in [*Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split(), first.pid]:
        os.kill(int(number), signal.SIGKILL)  # type: ignore[call-overload]
    first.communicate()


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    try:
        made = Lan(tmp_path)
    except FileNotFoundError as e:
        pytest.skip(f"hosts cannot be made here: {e.filename} is not installed")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = pictures(tmp_path_factory.mktemp("data") / "p", IMAGES)
    (found / "bad.jpg").write_text("no image")
    return found


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one process stores."""
    store = store_at(tmp_path_factory.mktemp("whole") / "s")
    index([folder], store, PlainEncoder())
    return store


def same(store: Path, whole: Store) -> bool:
    """Whether every row is there once, with the vector and the thumbnail it should have."""
    found = Store.open(store)
    assert not list((store / "incoming").glob("*.h5"))
    return contents(found) == contents(whole) and pictures_of(found) == pictures_of(whole)


def pictures_of(store: Store) -> dict[str, bytes]:
    snapshot = store.snapshot()
    return dict(zip(snapshot.rows.keys.tolist(), snapshot.thumbnails(range(len(snapshot))), strict=True))  # type: ignore[arg-type]


def test_three_hosts_store_what_one_process_stores(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, *_ = lan.cluster("true", "true", "true")
    driver = head.index(head, folder, tmp_path / "s")
    report = driver.report()
    assert (report["added"], [bad["key"] for bad in report["skipped"]]) == (IMAGES, ["p/bad.jpg"])
    assert sorted(worker.split()[0] for worker in report["workers"]) == ["host2", "host3", "host4"]
    assert report["lost"] == []
    assert same(tmp_path / "s", whole)
    assert driver.printed == ""


def test_a_host_whose_plug_is_pulled_costs_no_row(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
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


def test_a_host_that_goes_silent_is_waited_for_and_given_up(
    lan: Lan, folder: Path, whole: Store, tmp_path: Path
) -> None:
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
def test_without_its_head_the_run_ends_and_goes_on_with_another(
    lan: Lan, folder: Path, whole: Store, tmp_path: Path, how: str
) -> None:
    head, other, place = lan.cluster("true", "true")
    driver = place.index(head, folder, tmp_path / "s")
    driver.has_stored(100)
    for worker in [*other.workers(), *place.workers()]:
        os.kill(worker, signal.SIGSTOP)  # else they might be done before the loss is seen
    getattr(head, how)()
    error = driver.error()
    assert f"the Ray head node at {head.address}:{PORT} no longer answers" in error
    assert "Traceback" not in error
    assert 100 <= len(contents(Store.open(tmp_path / "s"))) < IMAGES
    new, _ = lan.cluster("true")
    report = new.index(new, folder, tmp_path / "s").report()
    assert report["known"] >= 100
    assert same(tmp_path / "s", whole)


def test_a_host_that_joins_later_gets_work(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, first = lan.cluster("true")
    late = lan.host()
    driver = head.index(head, folder, tmp_path / "s")
    driver.has_stored(50)
    [worker] = first.workers()
    os.kill(worker, signal.SIGSTOP)  # else it might be done before the other has begun
    started(late.start_ray(head))
    driver.has_stored(1000)
    os.kill(worker, signal.SIGCONT)
    report = driver.report()
    assert sorted(worker.split()[0] for worker in report["workers"]) == ["host2", "host3"]
    assert same(tmp_path / "s", whole)


def test_a_host_that_does_not_see_the_images_is_left_out(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    head, *_ = lan.cluster("true", f"mount -t tmpfs none {folder}")
    report = head.index(head, folder, tmp_path / "s").report()
    assert [bad["key"] for bad in report["skipped"]] == ["p/bad.jpg"]
    assert [worker.split()[0] for worker in report["workers"]] == ["host2"]
    assert len(report["lost"]) == 1
    assert report["lost"][0].startswith("host3 was excluded: it could read none of the ")
    assert same(tmp_path / "s", whole)


def test_a_host_that_does_not_see_the_store_is_left_out(lan: Lan, folder: Path, whole: Store, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    head, *_ = lan.cluster("true", f"mount -t tmpfs none {tmp_path / 'shared'}")
    report = head.index(head, folder, tmp_path / "shared" / "s").report()
    assert [worker.split()[0] for worker in report["workers"]] == ["host2"]
    assert report["lost"][0].startswith("host3 was excluded: its shard is not in ")
    assert same(tmp_path / "shared" / "s", whole)


def test_where_no_host_sees_the_images_the_run_ends(lan: Lan, folder: Path, tmp_path: Path) -> None:
    head, *_ = lan.cluster(f"mount -t tmpfs none {folder}")
    error = head.index(head, folder, tmp_path / "s").error()
    assert "no usable host remains: host2 was excluded: it could read none of the " in error
    assert not (tmp_path / "s" / "quarantine.tsv").exists()


def test_a_host_with_another_package_or_other_weights_is_named(lan: Lan, folder: Path, tmp_path: Path) -> None:
    here, there = build_standin(tmp_path / "here", seed=0), build_standin(tmp_path / "there", seed=1)
    (tmp_path / "older.py").write_text('__version__ = "0.0.9"\n')
    (tmp_path / "absent.py").write_text("raise ModuleNotFoundError(\"No module named 'clipfake'\", name='clipfake')\n")
    package = PACKAGE / "__init__.py"
    head, _ = lan.cluster("true")
    for setup, message in {
        f"mount --bind {tmp_path / 'absent.py'} {package}": "host3: clipfake is not installed there",
        f"mount --bind {tmp_path / 'older.py'} {package}": "host4 has clipfake 0.0.9",
        f"mount --bind {there} {here}": "have different encoders of the same name",
        f"mount -t tmpfs none {here}": f"host6: the encoder {here} cannot be loaded",
    }.items():
        host = lan.host(setup)
        started(host.start_ray(head))
        error = head.index(head, folder, tmp_path / "s", "--encoder", str(here)).error()
        assert message in error
        assert host.name in error
        host.kill()


def test_ctrl_c_stores_what_is_under_way_and_leaves_no_worker(lan: Lan, folder: Path, tmp_path: Path) -> None:
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


def test_two_hosts_with_a_part_each_fill_one_store_at_the_same_time(
    lan: Lan, folder: Path, whole: Store, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "clipfake", "index", "--folders", str(folder), "--store", str(tmp_path / "s")]
    command += ["--encoder", "plain", "--threads", "1", "--rows-per-shard", "100", "--json", "--part"]
    result = [part.communicate(timeout=100) for part in [lan.host().begin(*command, f"{i}/2") for i in (1, 2)]]
    assert sum(json.loads(out)["added"] for out, _ in result) == IMAGES
    assert same(tmp_path / "s", whole)

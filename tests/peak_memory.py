#!/usr/bin/env python3
"""Prints the most memory that a udev call has resident: VmHWM (proc_pid_status(5)) when it exits.

python3 tests/peak_memory.py --binary target/release/hotplugger
"""

import argparse
import ctypes
import os
import re
import signal
import socket
import tempfile
import threading
from pathlib import Path

PORT = "/devices/pci0000:00/0000:00:14.0/usb1/1-3"
GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'
REPLIES = {
    b"qom-list": b"[]",
    b"qom-get": b"true",
    b"human-monitor-command": b'""',
}


def make_host(root, port):
    """A host with a tablet in port 1-3, and one configured port."""
    sysfs = root / f"sys{PORT}"
    for name, value in [
        ("busnum", 1), ("devnum", 16), ("bDeviceClass", "00"), ("idVendor", "0627"),
        ("idProduct", "0001"), ("speed", 480), ("product", "QEMU USB Tablet"),
    ]:
        write(sysfs / name, f"{value}\n")
    write(root / "sys/kernel/uevent_seqnum", "1000\n")
    write(root / "proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
    write(root / "etc/hotplugger/config.yaml",
          f"virtual_machines:\n  w:\n    socket: /run/w.qmp\n    delay: 0\n    ports: [{port}]\n")
    (root / "run").mkdir()
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    os.umask(0o022)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.write_text(text)
    path.chmod(0o644)


def polite(client):
    """Answers as the QEMU of a guest that takes any device."""
    client.sendall(GREETING)
    for line in client.makefile("rb"):
        command = line.split(b'"execute":"')[1].split(b'"')[0]
        number = line.rsplit(b'"id":', 1)[1].strip(b"}\n")
        client.sendall(b'{"return": %s, "id": %s}\r\n' % (REPLIES.get(command, b"{}"), number))


def endless(client):
    """A greeting of 1 GB."""
    client.sendall(b'{"QMP": {"version": "')
    for _ in range(1000):
        client.sendall(b"x" * 1_000_000)


def dense(client):
    """Answers the first question with 1 MiB of tiny values."""
    client.sendall(GREETING)
    for line in client.makefile("rb"):
        number = line.rsplit(b'"id":', 1)[1].strip(b"}\n")
        value = b"{}" if b"qmp_capabilities" in line else b"[%s0]" % (b'{"":0},' * 140_000)
        client.sendall(b'{"return": %s, "id": %s}\r\n' % (value, number))


def long_text(client):
    """Answers the question for the guest's buses with as much text as is taken."""
    client.sendall(GREETING)
    bus = rb'bus: b\n  type usb-bus\n  dev: d, id \"\"\n    addr 0.0, port 1, speed 12, name n\n'
    for line in client.makefile("rb"):
        number = line.rsplit(b'"id":', 1)[1].strip(b"}\n")
        command = line.split(b'"execute":"')[1].split(b'"')[0]
        value = REPLIES.get(command, b"{}")
        if b"info qtree" in line:
            value = b'"%s"' % (bus * (1_000_000 // len(bus)))
        client.sendall(b'{"return": %s, "id": %s}\r\n' % (value, number))


def serve(path, behave):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run():
        while True:
            client, _ = listener.accept()
            try:
                behave(client)
            except (BrokenPipeError, ConnectionResetError):
                pass
            client.close()

    threading.Thread(target=run, daemon=True).start()


def run(binary, port, behave):
    """Returns the exit status, the peak in KiB, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        make_host(root, port)
        if behave:
            serve(root / "run/w.qmp", behave)
        environment = {
            "HOTPLUGGER_ROOT": folder, "ACTION": "bind", "DEVPATH": PORT, "SUBSYSTEM": "usb",
            "DEVTYPE": "usb_device", "TYPE": "0/0/0", "BUSNUM": "001", "DEVNUM": "016",
            "SEQNUM": "1000",
        }
        said = root / "said"
        status, peak = traced(binary, environment, said)
        return status, peak, said.read_text().strip()


PTRACE_TRACEME, PTRACE_CONT, PTRACE_SETOPTIONS = 0, 7, 0x4200
PTRACE_O_TRACEEXIT, PTRACE_EVENT_EXIT = 0x40, 6
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def traced(binary, environment, said):
    """Runs it, stopped by the kernel once when it starts and once right before it is gone.

    What wait4(2) says of a child's peak has its parent's in it, which is Python's.
    """
    child = os.fork()
    if child == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o600), 2)
        ptrace(PTRACE_TRACEME, 0, None, None)
        os.execve(binary, [binary], environment)
    os.waitpid(child, 0)
    ptrace(PTRACE_SETOPTIONS, child, None, PTRACE_O_TRACEEXIT)
    peak, passed_on = None, 0
    while True:
        ptrace(PTRACE_CONT, child, None, passed_on)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status), peak
        passed_on = os.WSTOPSIG(status)
        if status >> 8 == signal.SIGTRAP | PTRACE_EVENT_EXIT << 8:
            about = Path(f"/proc/{child}/status").read_text()
            peak, passed_on = int(re.search(r"VmHWM:\s+(\d+)", about)[1]), 0


CASES = [
    ("no port of the config matches", PORT.replace("1-3", "1-4"), None),
    ("a device is attached", PORT, polite),
    ("nobody listens", PORT, None),
    ("a greeting of 1 GB", PORT, endless),
    ("a reply of 1 MiB of tiny values", PORT, dense),
    ("1 MB of text about the guest's buses", PORT, long_text),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/release/hotplugger", type=os.path.abspath)
    binary = parser.parse_args().binary
    for what, port, behave in CASES:
        status, peak, said = run(binary, port, behave)
        print(f"{what:40} {peak:6} KiB  exit {status}  {said[:100]}", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How long past its `timeout` a udev call runs whose QMP server does not let it go.

python3 tests/bench/deadlines.py --binary target/release/hotplugger
"""
import argparse
import os
import socket
import statistics
import subprocess
import threading
import time

import instructions

TIMEOUT = 0.5           # s
RUNS = 20
GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'


def silent(client):
    client.recv(1)


def dripping(client):
    """Greets a byte at a time, and would take four seconds for it."""
    for byte in GREETING:
        client.sendall(bytes([byte]))
        time.sleep(0.05)


def talkative(client):
    """Greets, and tells of events as fast as they are taken."""
    client.sendall(GREETING)
    events = b'{"event": "RTC_CHANGE", "data": {"offset": 1}}\r\n' * 10_000
    while True:
        client.sendall(events)


def serve(path, script):
    """Serves each client with the script, until it leaves."""
    def handle(client):
        with client:
            try:
                script(client)
            except OSError:
                pass

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept():
        while True:
            threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--binary', required=True)
    binary = os.path.abspath(parser.parse_args().binary)
    for script in (silent, dripping, talkative):
        with instructions.host(1, match=True) as folder:
            config = f'{folder}/etc/hotplugger/config.yaml'
            with open(config) as file:
                text = file.read()
            with open(config, 'w') as file:
                file.write(text.replace('    delay: 0\n', f'    delay: 0\n    timeout: {TIMEOUT}\n'))
            serve(f'{folder}/run/vm0.qmp', script)
            over = []
            for _ in range(RUNS):
                start = time.monotonic()
                ended = subprocess.run([binary, 'udev'], env=instructions.event('bind', folder),
                                       capture_output=True, text=True)
                over.append(time.monotonic() - start - TIMEOUT)
                assert ended.returncode == 1 and 'no answer within' in ended.stderr, ended
        print(f'{script.__name__}: {1000 * statistics.median(over):.0f} ms past {TIMEOUT} s '
              f'({1000 * min(over):.0f} to {1000 * max(over):.0f})')


if __name__ == '__main__':
    main()

#!/usr/bin/python3
"""Writes a guest's serial console to a file, with the host VM's CLOCK_MONOTONIC before each line.

Arguments: the console's UNIX socket, the file.
"""
import socket
import sys
import time


def connect(path):
    """QEMU, starting at the same time, makes the socket any moment now."""
    while True:
        console = socket.socket(socket.AF_UNIX)
        try:
            console.connect(path)
            return console
        except OSError:
            console.close()
            time.sleep(0.05)


path, log_path = sys.argv[1:]
with open(log_path, 'w', buffering=1) as log:
    for line in connect(path).makefile('rb'):
        log.write(f'{time.monotonic():.6f} {line.decode(errors="replace").rstrip()}\n')

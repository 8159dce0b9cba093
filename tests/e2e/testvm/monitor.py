"""Records uevents in the host VM, the kernel's own and udev's, with `udevadm monitor`."""
import itertools
import re
from typing import NamedTuple

from .error import VmError
from .wait import wait_for

_HEAD = re.compile(r'(KERNEL|UDEV) *\[([\d.]+)\] (\S+) +(\S+) \(\S+\)$', re.M)
_numbers = itertools.count()


class Event(NamedTuple):
    """One uevent."""
    source: str         # 'KERNEL', or 'UDEV' when udevd is done with it
    time: float         # the host VM's CLOCK_MONOTONIC
    action: str
    devpath: str
    props: dict


class Monitor:
    """A context manager: records from its beginning to its end.

    with vm.monitor() as monitor:
        vm.plug('kbd', '1')
        monitor.wait(lambda event: event.source == 'UDEV' and event.action == 'bind')
    monitor.events
    """

    def __init__(self, host, subsystems=('usb',)):
        self._host = host
        self._subsystems = subsystems
        self._unit = f'udev-monitor-{next(_numbers)}'
        self._file = f'/run/{self._unit}'
        self._text = None           # once it is over

    def __enter__(self):
        filters = [f'--subsystem-match={name}' for name in self._subsystems]
        self._host.sh(['systemd-run', '--quiet', f'--unit={self._unit}', '--collect',
                       '-p', f'StandardOutput=file:{self._file}',
                       'stdbuf', '-oL', 'udevadm', 'monitor', '-k', '-u', '-p', *filters])
        wait_for(lambda: 'the kernel uevent' in self._read(), what='udevadm monitor')
        return self

    def __exit__(self, *_):
        self._host.settle()
        self._host.exec(['systemctl', 'stop', self._unit])
        self._text = self._read()
        self._host.exec(['rm', '-f', self._file])
        if _HEAD.search(self._text) is None and re.search(r'^[A-Z]+=', self._text, re.M):
            raise VmError('udevadm monitor prints its events in an unknown form')

    @property
    def text(self):
        """What udevadm printed so far."""
        return self._read() if self._text is None else self._text

    @property
    def events(self):
        """The Events so far, in their order."""
        return parse(self.text)

    def wait(self, match, timeout=60):
        """Waits for an Event for which match(event) is true, and returns it."""
        return wait_for(lambda: next(filter(match, self.events), None), timeout, 'a uevent')

    def _read(self):
        return self._host.exec(['cat', self._file]).out


def parse(text):
    """The Events in what `udevadm monitor -p` printed."""
    events = []
    for block in text.split('\n\n')[:-1]:       # after the last blank line: half an event
        head, *lines = block.strip().splitlines()
        if found := _HEAD.match(head):
            props = dict(line.split('=', 1) for line in lines)
            events.append(Event(found[1], float(found[2]), found[3], found[4], props))
    return events

#!/usr/bin/env python3
"""Shows hotplugger at work: a keyboard is plugged into a host in a box and appears in its guest.

Exit status 0 only if every step really happened.
"""
import argparse
import json
import re
import signal
import sys

import product
import testvm
from testvm import TestVm, VmError
from testvm.progress import step

PORT, PRODUCT = '1', 'QEMU USB Keyboard'
COLOURS = {'kernel': '33', 'hotplugger': '1;32', 'guest QEMU': '36', 'guest OS': '35',
            'ok': '1;32', 'MISSING': '1;31'}
_CONSOLE = re.compile(r'((usb \S+: (new .* device|Product:|USB disconnect)|input: ).*?)( as |$)')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--binary', default=product.BINARY, help='the hotplugger to show')
    parser.add_argument('--install', action='store_true',
                        help='apt-get install what the test VM needs and this machine has not')
    args = parser.parse_args()
    print('A host in a box: Debian with systemd-udevd, in it a QEMU guest with Linux.\n'
          'Only the first time it has to be built, which takes some minutes.', flush=True)
    testvm.build('linux', install=args.install)
    with TestVm() as host:
        with step('host and guest'):
            host.up(guest='linux')
            product.install(host, args.binary, product.config({'windows': [PORT]}, delay=1))
        demo = Demo(host)
        demo.plug()
        demo.unplug()
    if demo.missing:
        print(f'\n{_coloured("MISSING")}: ' + '; '.join(demo.missing))
        return 1
    print(f'\n{_coloured("ok")}: plugged into the host, used in the guest, and gone again.')
    return 0


class Demo:
    """Plugs and unplugs the keyboard and tells what came of it."""

    def __init__(self, host):
        self._host = host
        self._guest = host.guest()
        self.missing = []           # what did not happen, in words

    def plug(self):
        """From the port into the guest's operating system."""
        print(f'\nA keyboard is plugged into port {PORT} of the host:\n')
        with self._host.monitor() as monitor:
            self._host.plug('kbd', PORT)
            self._expect('the guest QEMU lists the keyboard as attached',
                         lambda: PRODUCT in self._guest.attached().values())
            self._expect('the guest OS finds the keyboard',
                         lambda: PRODUCT in self._guest.lsusb().values())
        said = self._timeline(monitor, 'add')
        self._require('hotplugger says so in the journal', 'hotplugger' in said)
        self._require('the guest QEMU opens the device', 'guest QEMU' in said)
        self._list()

    def unplug(self):
        """Out of the port, and out of the guest."""
        print(f'\nThe keyboard is pulled out of port {PORT}:\n')
        with self._host.monitor() as monitor:
            self._host.unplug(PORT)
            self._expect('the guest QEMU has forgotten the keyboard',
                         lambda: not self._guest.ids())
            self._expect('the guest OS has lost the keyboard', lambda: not self._guest.lsusb())
        said = self._timeline(monitor, 'remove')
        self._require('hotplugger says so in the journal', 'hotplugger' in said)
        self._list()

    def _timeline(self, monitor, action):
        """Prints what happened since the kernel's first event; returns who was heard."""
        kernel = [event for event in monitor.events if event.source == 'KERNEL']
        device = product.devpaths(PORT)[0]
        self._require(f"the kernel's {action} event",
                      any((event.devpath, event.action) == (device, action) for event in kernel))
        start = kernel[0].time if kernel else 0
        moments = [(event.time, 'kernel', f'{event.action} {event.props["DEVTYPE"]} '
                    + event.devpath.rpartition('/')[2]) for event in kernel]
        moments += [(time, 'hotplugger', text) for time, text in self._journal()]
        moments += [(time, 'guest QEMU', text) for time, text in self._guest.trace()
                    if 'usb_host_open_success' in text or 'usb_host_close' in text]
        moments += [(time, 'guest OS', found[1]) for time, text in self._guest.console()
                    if (found := _CONSOLE.search(text))]
        moments = sorted(moment for moment in moments if moment[0] >= start)
        for time, source, text in moments:
            print(f'  {time - start:7.3f} s  {_coloured(source, 10)}  {text}')
        return {source for _, source, _ in moments}

    def _journal(self):
        for line in self._host.journal('-t', 'hotplugger', '-o', 'json').splitlines():
            entry = json.loads(line)
            yield int(entry['__MONOTONIC_TIMESTAMP']) / 1e6, entry['MESSAGE']

    def _list(self):
        attached = [f'{name}, {text}' for name, text in self._guest.attached().items()]
        print(f'\n  The guest QEMU now has: {"; ".join(attached) or "nothing"}', flush=True)

    def _expect(self, what, condition):
        try:
            self._host.wait_for(condition, 60)
        except VmError:
            self._require(what, False)

    def _require(self, what, happened):
        if not happened:
            self.missing.append(what)


def _coloured(text, width=0):
    padded = f'{text:{width}}'
    return f'\x1b[{COLOURS[text]}m{padded}\x1b[0m' if sys.stdout.isatty() else padded


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)     # cleans up, as on Ctrl-C
    try:
        sys.exit(main())
    except VmError as error:
        sys.exit(f'demo: {error}')
    except KeyboardInterrupt:
        sys.exit(130)

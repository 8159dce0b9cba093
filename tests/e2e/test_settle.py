"""The settle delay: from the device's last kernel event, and for all devices at the same time."""
import json

from product import devpaths
from test_attach import AttachCase


class SettleTest(AttachCase):
    """With `delay: 1`, against the kernel's own times and the guest QEMU's."""

    guest_kind = 'seabios'

    def opened(self):
        """When the guest's QEMU opened each device: {device number: CLOCK_MONOTONIC}."""
        opened = {}
        for time, text in self.guest.trace():
            if 'usb_host_open_success' in text:
                opened[text.rpartition(':')[2].strip()] = time
        return opened

    def entries(self):
        """hotplugger's journal entries about attached devices, by port."""
        lines = self.vm.journal('-t', 'hotplugger', '-o', 'json').splitlines()
        entries = [json.loads(line) for line in lines]
        return {entry['HOTPLUGGER_PORT']: entry for entry in entries
                if entry['HOTPLUGGER_OUTCOME'] == 'attached'}

    def plug_and_measure(self, *plugged):
        """Plugs all at once; returns (quiet since, opened at, settling, exchange) of each."""
        self.install({'windows': [port for _, port in plugged]}, delay=1)
        with self.vm.monitor(subsystems=()) as monitor:
            self.vm.plug_together(*plugged)
            self.wait_attached(*plugged)
            self.vm.settle()
        opened, entries, measured = self.opened(), self.entries(), []
        for kind, port in plugged:
            devnum = self.devnum(kind, port)
            at = opened[devnum]
            path = devpaths(port)[1 if kind == 'storage' else 0]
            # What the host's drivers do is none of its own events: they are thrown out at once.
            last = max(event.time for event in monitor.events
                       if event.source == 'KERNEL' and event.time < at
                       and (event.devpath == path or event.action == 'add'
                            and event.devpath.rpartition('/')[0] == path))
            entry = entries[path.rpartition('/')[2]]
            settling, exchange = (int(entry[f'HOTPLUGGER_{name}_USEC']) / 1e6
                                  for name in ('SETTLING', 'SESSION'))
            measured.append((last, at, settling, exchange))
            print(f'    {kind} in {port}: opened {at - last:.3f} s after the last kernel event; '
                  f'hotplugger: {settling:.3f} s settling, {exchange:.3f} s with QEMU')
        return measured

    def test_never_before_a_second_of_quiet(self):
        for last, at, _, _ in self.plug_and_measure(('kbd', '1')):
            self.assertGreaterEqual(at - last, 1.0)

    def test_a_disk_too(self):
        for last, at, settling, _ in self.plug_and_measure(('storage', '1')):
            self.assertGreaterEqual(at - last, 1.0)
            # The disk that its driver would make of it after a second does not restart the clock.
            self.assertLess(settling, 1.8)

    def test_two_delays_run_at_the_same_time(self):
        (first, second) = self.plug_and_measure(('kbd', '1'), ('mouse', '2'))
        for last, at, _, _ in (first, second):
            self.assertGreaterEqual(at - last, 1.0)
        # One settled while the other did: of two seconds of waiting there was less than a second
        # between the two ends.
        self.assertLess(abs(first[1] - second[1]), min(first[2], second[2]))

    def test_a_device_that_leaves_while_it_settles_ends_the_wait(self):
        self.install(delay=60)
        with self.vm.monitor() as monitor:
            self.vm.plug('kbd', '1')
            self.vm.wait_for(lambda: self.vm.exec(['pgrep', 'hotplugger']).rc == 0, 60,
                              'hotplugger settling')
            self.vm.unplug('1')
            monitor.wait(lambda event: event.source == 'UDEV' and event.action == 'remove'
                         and event.devpath == devpaths('1')[0], timeout=50)
        self.assertEqual(self.guest.ids(), [])
        self.assertIn('unplugged before it was attached', self.vm.journal('-t', 'hotplugger'))

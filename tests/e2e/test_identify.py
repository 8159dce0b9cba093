"""`identify`: as a user without rights sees plugs and pulls, live.

The times are printed, not asserted: they are from udevadm's receipt of the kernel's event to the
line. A device's name can be read only once its drivers have been probed, which takes this VM long.
"""
import contextlib
import json
import shlex
import statistics

import product
from case import Case

NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']

# Puts the time before each line of its standard input.
STAMP = '''
import sys, time
for line in sys.stdin:
    print(f"{time.monotonic():.6f} {line}", end="", flush=True)
'''


class IdentifyTest(Case):
    """Run as nobody, beside udevd."""

    guest_kind = 'none'

    def setUp(self):
        super().setUp()
        self.install({'windows': ['5']})
        self.vm.put(STAMP.encode(), '/run/stamp.py')

    @contextlib.contextmanager
    def identify(self, *arguments):
        """Runs `identify --json`; yields, once it listens, a function that returns the (time,
        object) told so far."""
        out = '/run/identify.out'
        command = shlex.join([*NOBODY, 'hotplugger', 'identify', '--json', *arguments])
        self.vm.sh(f"rm -f {out}; systemd-run --quiet --unit=identify --collect bash -c "
                    f"'set -o pipefail; {command} </dev/null | python3 /run/stamp.py >{out}'")

        def told():
            lines = [line.split(' ', 1) for line in self.vm.exec(['cat', out]).out.splitlines()]
            return [(float(time), json.loads(text)) for time, text in lines]

        self.vm.wait_for(lambda: told(), what='identify to listen')
        self.assertEqual(told()[0][1], {'event': 'listening'})
        try:
            yield told
        finally:
            self.vm.exec(['systemctl', 'stop', 'identify'])

    def plug_and_wait(self, kind, port):
        """Plugs, and returns when the host has the device."""
        self.vm.plug(kind, port)
        node = f'/sys/bus/usb/devices/1-{port}/product'
        self.vm.wait_for(lambda: self.vm.exec(['cat', node]).out, what=f'{kind} on the host')
        self.vm.settle()

    def wait_told(self, told, number):
        """The (time, object) of that line; 0 is `listening`."""
        self.vm.wait_for(lambda: len(told()) > number, what=f'line {number} of identify')
        return told()[number]

    def test_plugs_and_pulls_are_told_at_once_with_both_halves(self):
        (kbd2, kbd3), (stick2, stick3) = product.devpaths('1'), product.devpaths('2')
        with self.vm.monitor() as monitor, self.identify('--count', '2') as told:
            self.vm.plug('kbd', '1')
            keyboard = self.wait_told(told, 1)
            self.vm.unplug('1')
            pulled = self.wait_told(told, 2)
            self.vm.plug('storage', '2')
            stick = self.wait_told(told, 3)
            end = self.wait_told(told, 4)
        self.assertEqual((keyboard[1]['event'], keyboard[1]['devpath']), ('plug', kbd2))
        self.assertEqual(keyboard[1]['device']['product'], 'QEMU USB Keyboard')
        self.assertEqual((keyboard[1]['usb'], keyboard[1]['vms']), (2, []))
        self.assertEqual(keyboard[1]['peer'], {
            'devpath': kbd3, 'name': 'pci-0000:00:14.0/usb3:1', 'port': '2-1', 'usb': 3, 'vms': [],
            'guessed': True})
        self.assertEqual((pulled[1]['event'], pulled[1]['devpath']), ('pull', kbd2))
        self.assertEqual(pulled[1]['device'], keyboard[1]['device'])
        self.assertEqual((stick[1]['event'], stick[1]['devpath']), ('plug', stick3))
        self.assertEqual((stick[1]['device']['speed'], stick[1]['usb']), ('5000', 3))
        self.assertEqual(stick[1]['peer']['devpath'], stick2)
        self.assertEqual((end[1]['event'], end[1]['reason']), ('end', 'count'))
        self.assertEqual(end[1]['ports'], [kbd2, kbd3, stick3, stick2])
        kernel = [event for event in monitor.events if event.source == 'KERNEL'
                  and event.props.get('DEVTYPE') == 'usb_device'
                  and event.action in ('add', 'remove')]
        self.assertEqual(len(kernel), 3, kernel)
        for event, line in zip(kernel, (keyboard, pulled, stick)):
            print(f'    {event.action} {event.devpath[-3:]}: told after '
                  f'{(line[0] - event.time) * 1000:.0f} ms')

    def test_thirty_pulls_and_plugs(self):
        with self.vm.monitor() as monitor, self.identify() as told:
            for count in range(15):
                self.vm.plug('kbd', '1')
                self.wait_told(told, 2 * count + 1)
                self.vm.unplug('1')
                self.wait_told(told, 2 * count + 2)
            lines = told()[1:]
        events = [event for event in monitor.events if event.source == 'KERNEL'
                  and event.props.get('DEVTYPE') == 'usb_device'
                  and event.action in ('add', 'remove')]
        self.assertEqual([line[1]['event'] for line in lines], ['plug', 'pull'] * 15)
        times = [(line[0] - event.time) * 1000 for event, line in zip(events, lines)]
        for name, some in (('plug', times[::2]), ('pull', times[1::2])):
            print(f'    {name}: told after {min(some):.0f} to {max(some):.0f} ms, '
                  f'median {statistics.median(some):.0f} ms')

    def test_a_hub_is_told_with_what_is_behind_it(self):
        hub = product.devpaths('2')[0]
        with self.identify() as told:
            self.vm.plug('hub', '2')
            self.assertEqual(self.wait_told(told, 1)[1]['devpath'], hub)
            self.vm.plug('kbd', '2.1')
            keyboard = self.wait_told(told, 2)[1]
            self.vm.plug('mouse', '2.2')
            self.wait_told(told, 3)
            self.vm.unplug('2')
            pulls = self.vm.wait_for(lambda: self.pulls_to(told, hub), what='the hub pulled')
            self.vm.exec(['pkill', '-INT', '-u', '65534', 'hotplugger'])
            end = self.wait_told(told, 4 + len(pulls))[1]
        self.assertEqual((keyboard['hub'], keyboard['devpath']), (hub, f'{hub}/1-2.1'))
        # With the hub, unless the VM took its time between the pulls.
        gone = [port['device']['product'] for port in pulls[:-1] + pulls[-1]['behind']]
        self.assertEqual(sorted(gone), ['QEMU USB Keyboard', 'QEMU USB Mouse'])
        self.assertEqual((end['reason'], end['ports']), ('signal', product.devpaths('2')))

    @staticmethod
    def pulls_to(told, devpath):
        """All pulls told so far, if that of this port is among them."""
        pulls = [line for _, line in told() if line['event'] == 'pull']
        return pulls if pulls and pulls[-1]['devpath'] == devpath else None

    def test_what_is_plugged_already_and_whose_it_is(self):
        self.plug_and_wait('mouse', '5')
        result = self.vm.exec([*NOBODY, 'hotplugger', 'identify', '--plugged', '--json'])
        mouse, end = map(json.loads, result.out.splitlines())
        self.assertEqual((mouse['event'], mouse['vms'], mouse['peer']['vms']),
                         ('plugged', ['windows'], ['windows']))
        self.assertEqual(end['reason'], 'listed')

    def test_written_by_root_and_refused_to_others(self):
        before = self.vm.get('/etc/hotplugger/config.yaml').decode()
        self.plug_and_wait('kbd', '1')
        arguments = ['hotplugger', 'identify', '--plugged', '1-1', '--write', 'windows']
        refused = self.vm.exec([*NOBODY, *arguments])
        self.assertEqual(refused.rc, 1)
        self.assertIn('sudo', refused.err)
        self.vm.sh(arguments)
        after = self.vm.get('/etc/hotplugger/config.yaml').decode()
        kept = [line for line in after.splitlines() if 'QEMU USB Keyboard' not in line
                and 'the peer port of 1-1' not in line]
        self.assertEqual(kept, before.splitlines())
        self.assertEqual(self.vm.get('/etc/hotplugger/config.yaml.bak').decode(), before)
        # udev's calls take the new ports at once
        self.vm.unplug('1')
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: '1-1' in self.vm.journal('-t', 'hotplugger'),
                          what='the udev call to know the port')

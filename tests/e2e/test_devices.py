"""Real devices' habits on a real xHCI driver: devices in Python, plugged in by usbredir.

Each row of the table that is printed at the end is a device and a behaviour: the guest can use the
device, or one line says why not; unplugged, nothing is left.
"""
import hashlib
import os
import re
import time

from test_attach import AttachCase
from usbdev import BulkOnlyDisk, Hub, Keyboard, UasDisk, Vendor
from usbdev.descriptors import FULL, HIGH, LOW, SUPER

# How long the device that never stops resetting is plugged in.
RESETTING = int(os.environ.get('HOTPLUGGER_TEST_RESETTING', 15))        # s
_SPEEDS = {LOW: '1.5', FULL: '12', HIGH: '480', SUPER: '5000'}
_TABLE = []


class DevicesCase(AttachCase):
    """One host with a Linux guest; several devices, one after the other."""

    def setUp(self):
        super().setUp()
        self.install({'windows': ['1', '2', '3']}, delay=0.2)

    @classmethod
    def tearDownClass(cls):
        for device, behaviour, result in _TABLE:
            print(f'    {device:24} {behaviour:44} {result}')
        _TABLE.clear()

    def row(self, device, behaviour, result):
        """Notes what came of it."""
        _TABLE.append((device, behaviour, result))

    def attached_after(self):
        """How long after the kernel's add the last device was attached, in seconds."""
        times = re.findall(r'([0-9.]+) s after the kernel', '\n'.join(self.lines()))
        return float(times[-1])

    def lines(self):
        """hotplugger's lines in the journal."""
        return self.vm.journal('-t', 'hotplugger').splitlines()

    def wait_in_guest(self, product):
        """Waits until the guest has enumerated a device with that product ID; its place."""
        def place():
            _, text = self.guest.sh('cd /sys/bus/usb/devices; grep -l "^%04x$" */idProduct' % product)
            return next((line.split('/')[0] for line in text.splitlines() if '/' in line), None)
        return self.vm.wait_for(place, 60, f'the guest to have {product:04x}')

    def wait_empty(self):
        """Unplugged, nothing is left: no object, no record, no process, no event."""
        self.vm.wait_for(lambda: not self.guest.ids(), 60, 'the guest to lose it')
        self.vm.wait_for(lambda: self.vm.exec('pgrep -x hotplugger').rc != 0, 60, 'hotplugger to end')
        self.vm.sh('udevadm settle --timeout=60')
        self.assertEqual(self.state_files(), [])

    def plugged(self, device, port='1'):
        """Plugs it in for the time of a with block."""
        return _Plugged(self, device, port)

    def speed_in_guest(self, place):
        return self.guest.sh(f'cat /sys/bus/usb/devices/{place}/speed')[1].strip()


class _Plugged:
    def __init__(self, case, device, port):
        self._case, self._device, self._port = case, device, port

    def __enter__(self):
        self._case.vm.plug_device(self._device, self._port)
        return self._device

    def __exit__(self, kind, *_):
        if kind is None:
            self._case.vm.unplug(self._port)
            self._case.wait_empty()


class DevicesTest(DevicesCase):
    """What works is usable in the guest."""

    def test_speeds_and_key_presses(self):
        for number, (speed, name) in enumerate(_SPEEDS.items(), 0x10):
            with self.subTest(speed=name):
                keyboard = Keyboard(speed, product=number)
                with self.plugged(keyboard):
                    place = self.wait_in_guest(number)
                    self.assertEqual(self.speed_in_guest(place), name)
                    self.pressed(keyboard)
                self.row('keyboard', f'{name} Mb/s, a key is pressed', 'arrives in the guest')

    def pressed(self, keyboard):
        """Presses A until the guest's input device has it."""
        self.guest.sh('rm -f /tmp/key; dev=$(ls /dev/input/event* | tail -1); '
                      '(dd if=$dev bs=24 count=1 of=/tmp/key 2>/dev/null &) ; sleep 1')
        self.vm.wait_for(lambda: keyboard.press() and self.guest.sh('test -s /tmp/key')[0] == 0,
                         60, 'the key press')

    def test_disks(self):
        for name, disk in {'bulk-only, high speed': BulkOnlyDisk(HIGH, 0x20),
                           'bulk-only, super speed': BulkOnlyDisk(SUPER, 0x21),
                           'UAS, high speed': UasDisk(HIGH, 0x22),
                           'UAS, super speed': UasDisk(SUPER, 0x23)}.items():
            with self.subTest(disk=name):
                with self.plugged(disk):
                    self.wait_in_guest(disk.identity.product)
                    self.vm.wait_for(lambda: self.guest.sh('ls /dev/sd?')[0] == 0, 60, 'the disk')
                    disk.disk.data[:1 << 20] = bytes(1 << 20)
                    status, text = self.guest.sh(
                        'd=$(ls /dev/sd? | tail -1); dd if=/dev/urandom of=/tmp/blob bs=64k count=16 '
                        '2>/dev/null; dd if=/tmp/blob of=$d bs=64k conv=fsync 2>/dev/null; '
                        'echo 3 > /proc/sys/vm/drop_caches; md5sum < /tmp/blob; '
                        'dd if=$d bs=64k count=16 2>/dev/null | md5sum')
                    self.assertEqual(status, 0, text)
                    written, read = [line.split()[0] for line in text.splitlines()]
                    stored = hashlib.md5(disk.disk.data[:1 << 20]).hexdigest()
                    self.assertEqual((read, stored), (written, written))
                self.row('disk', name, f'attached after {self.attached_after():.1f} s, '
                         '1 MiB written and read back')

    def test_odd_descriptors(self):
        odd = {
            'no strings': Vendor(product=0x30, strings=(None, None, None)),
            'product name that is not UTF-16': Vendor(product=0x31, strings=(
                'x', b'\x00\xd8\x00\xd8\x0a', None)),
            'no interface': Vendor(product=0x32, interfaces=0),
            '32 interfaces': Vendor(product=0x33, interfaces=32),
            'two configurations': Vendor(product=0x34, configurations=2),
            '10 Gb/s capability': Vendor(SUPER, 0x35, super_speed_plus=True),
        }
        for name, device in odd.items():
            with self.subTest(device=name):
                with self.plugged(device):
                    place = self.wait_in_guest(device.identity.product)
                    if name == 'two configurations':
                        self.guest.sh(f'echo 2 > /sys/bus/usb/devices/{place}/bConfigurationValue')
                        self.vm.wait_for(lambda: device.configuration == 2, 60, 'the second one')
                self.row('vendor device', name, 'usable in the guest')

    def test_hubs_stay_with_the_host(self):
        for speed in (HIGH, SUPER):
            with self.subTest(speed=_SPEEDS[speed]):
                with self.plugged(Hub(speed)):
                    self.vm.wait_for(lambda: 'hub' in self.vm.drivers().values(), 60, 'the hub')
                    self.vm.sh('udevadm settle --timeout=60')
                    self.assertEqual(self.guest.ids(), [])
                self.row('hub', f'{_SPEEDS[speed]} Mb/s', 'stays with the host')


class ChangingTest(DevicesCase):
    """Devices that come again as another one."""

    def test_changes_of_identity(self):
        other = Vendor(HIGH, 0x41).identity
        changes = {
            'storage, then modem': (BulkOnlyDisk(HIGH, 0x40), other),
            'loader, then firmware': (Vendor(FULL, 0x42), Vendor(FULL, 0x43).identity),
            'pad that wakes up': (Keyboard(FULL, 0x44), Keyboard(FULL, 0x45).identity),
        }
        for name, (device, later) in changes.items():
            with self.subTest(device=name):
                with self.plugged(device):
                    first = device.identity
                    self.wait_in_guest(first.product)
                    device.become(later)
                    self.wait_in_guest(later.product)
                    self.vm.wait_for(lambda: len(self.guest.ids()) == 1, 60, 'one object')
                    device.become(first)
                    self.wait_in_guest(first.product)
                self.row('mode switch', name + ' and back', 'usable in the guest each time')

    def test_a_device_that_resets_for_ever(self):
        device = Keyboard(FULL, 0x46)
        before = len(self.lines())
        with self.plugged(device):
            end = time.monotonic() + RESETTING
            times = 0
            while time.monotonic() < end:
                time.sleep(3)
                device.drop_off()
                time.sleep(0.2)
                device.come_back()
                times += 1
            # At most one line for each time it comes, and one for each time it goes.
            self.assertLessEqual(len(self.lines()) - before, 2 * times + 2)
            self.vm.sh('udevadm settle --timeout=60')
            self.wait_in_guest(0x46)
            self.vm.sh('hotplugger detach 1-1')
            lines = len(self.lines())
            self.assertEqual(self.guest.ids(), [])
            self.vm.sh('udevadm settle --timeout=60')
            self.assertEqual(len(self.lines()), lines)
        self.row('keyboard', 'resets every 3 s for ever', 'attached each time, udev idle')


class FailingTest(DevicesCase):
    """Devices that fail: the guest can use it in the end, or a line says why not."""

    def test_slow_and_failing_descriptors(self):
        slow = Keyboard(FULL, 0x50)
        slow.descriptors_after = 4
        third = Keyboard(FULL, 0x51)
        third.fails = 2
        for name, device in {'answers descriptors after 4 s': slow,
                             'enumerates on the third try': third}.items():
            with self.subTest(device=name):
                with self.plugged(device):
                    self.wait_in_guest(device.identity.product)
                self.row('keyboard', name, 'usable in the guest')

    def test_devices_that_never_answer(self):
        for name, behaviour in {'stalls': 'stalls every control request',
                                'silent': 'never answers'}.items():
            with self.subTest(device=name):
                device = Keyboard(FULL, 0x52)
                setattr(device, name, True)
                with self.plugged(device):
                    # The kernel tries for a minute or more; nothing waits for that.
                    self.vm.wait_for(lambda: 'descriptor read' in self.vm.sh('dmesg'), 120,
                                     'the kernel to fail')
                    self.assertEqual(self.guest.ids(), [])
                    self.assertEqual(self.guest.qmp('query-status')['status'], 'running')
                    self.vm.sh('udevadm settle --timeout=60; dmesg --clear')
                self.row('keyboard', behaviour, 'unknown to udev: no line')

    def test_devices_that_drop_off(self):
        # While it settles, while it is opened, during device_add, right after.
        for delay in (0.2, 0.5, 1.0):
            with self.subTest(seconds=delay):
                device = Keyboard(FULL, 0x53)
                with self.plugged(device):
                    time.sleep(delay)
                    device.drop_off()
                    self.vm.wait_for(lambda: self.vm.exec(
                        'ls -d /sys/bus/usb/devices/1-1').rc != 0, 60, 'the host to notice')
                    self.vm.sh('udevadm settle --timeout=60')
                    self.vm.wait_for(lambda: not self.guest.ids(), 60, 'the guest to lose it')
                    device.come_back()
                    self.wait_in_guest(0x53)
                self.row('keyboard', f'drops off after {delay} s and comes back',
                         'usable in the guest')


class SleepTest(DevicesCase):
    """The kernel suspends all devices and resumes them after five seconds (pm_test)."""

    def test_plugs_and_pulls_while_the_host_sleeps(self):
        for port, product in (('1', 0x60), ('2', 0x61)):
            self.vm.plug_device(Keyboard(FULL, product), port)
            self.wait_in_guest(product)
        self.vm.sh('echo devices > /sys/power/pm_test; dmesg --clear; '
                   '(sleep 1; echo mem > /sys/power/state) >/dev/null 2>&1 &')
        time.sleep(3)
        self.vm.unplug('1')
        self.vm.unplug('2')
        self.vm.plug_device(Keyboard(FULL, 0x62), '2')
        self.vm.plug_device(Keyboard(FULL, 0x63), '3')
        self.vm.wait_for(lambda: 'suspend exit' in self.vm.sh('dmesg'), 120, 'the host to wake up')
        for product in (0x62, 0x63):
            self.wait_in_guest(product)
        self.vm.wait_for(lambda: len(self.guest.ids()) == 2, 60, 'two objects')
        self.assertEqual(self.state_files(), ['port-1-2.json', 'port-1-3.json'])
        self.row('keyboards', 'pulled, swapped and plugged during sleep', 'as it should be')

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
        name = self.vm.wait_for(lambda: self.input_of(keyboard.identity.product), 60,
                                'the input device')
        self.guest.sh(f'rm -f /tmp/key; (dd if=/dev/input/{name} bs=24 count=1 of=/tmp/key '
                      '</dev/null 2>/dev/null &) ; sleep 1')
        self.vm.wait_for(lambda: keyboard.press() and self.guest.sh('test -s /tmp/key')[0] == 0,
                         60, 'the key press')

    def input_of(self, product):
        """The guest's input device of that product ID, if it is there already."""
        _, text = self.guest.sh(f'grep -l "^{product:04x}$" /sys/class/input/event*/device/id/product')
        return text.split('/')[4] if text.startswith('/sys/class/input/event') else None

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

    def test_disks_that_never_send_data(self):
        for name, disk in {'bulk-only': BulkOnlyDisk(HIGH, 0x24),
                           'UAS with streams': UasDisk(SUPER, 0x25)}.items():
            with self.subTest(disk=name):
                disk.naks = True
                with self.plugged(disk):
                    self.wait_in_guest(disk.identity.product)
                    self.assertEqual(self.guest.qmp('query-status')['status'], 'running')
                    self.vm.sh('udevadm settle --timeout=60')
                self.row('disk', f'{name}, NAKs all data for ever',
                         f'attached after {self.attached_after():.1f} s; the guest\'s driver waits')

    def test_what_the_guest_does_with_it(self):
        device = Vendor(HIGH, 0x36, configurations=2)
        with self.plugged(device):
            place = self.wait_in_guest(0x36)
            directory = f'/sys/bus/usb/devices/{place}'
            status, text = self.guest.sh(f'echo 0 > {directory}/power/autosuspend_delay_ms; '
                                         f'echo auto > {directory}/power/control')
            self.assertEqual(status, 0, text)
            self.vm.wait_for(lambda: self.power(directory) == 'suspended', 60, 'its suspend')
            self.guest.sh(f'echo on > {directory}/power/control')
            self.vm.wait_for(lambda: self.power(directory) == 'active', 60, 'its resume')
            self.row('vendor device', 'suspended and resumed by the guest', 'usable afterwards')
            resets = device.resets
            hub, _, port = place.rpartition('-')
            off = f'/sys/bus/usb/devices/{hub}-0:1.0/usb{hub}-port{port}/disable'
            status, text = self.guest.sh(f'echo 1 > {off}; echo 0 > {off}')
            self.assertEqual(status, 0, text)
            self.wait_in_guest(0x36)
            self.vm.wait_for(lambda: device.resets > resets, 60, 'the reset to arrive')
            self.guest.sh(f'echo 2 > {directory}/bConfigurationValue')
            self.vm.wait_for(lambda: device.configuration == 2, 60, 'the second configuration')
            self.assertEqual(len(self.guest.ids()), 1)
            self.row('vendor device', 'reset by the guest, then set to its second configuration',
                     'usable afterwards')

    def power(self, directory):
        return self.guest.sh(f'cat {directory}/power/runtime_status')[1].strip()

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

    def test_replug(self):
        with self.plugged(Keyboard(FULL, 0x37)) as keyboard:
            self.wait_in_guest(0x37)
            before = self.guest.ids()
            text = self.vm.sh('hotplugger replug 1-1 </dev/null')
            self.assertIn('Keyboard (1209:0037) is back', text)
            self.vm.wait_for(lambda: self.guest.ids() not in ([], before), 60, 'the new object')
            self.wait_in_guest(0x37)
            self.pressed(keyboard)
        self.row('keyboard', 'port switched off and on by `replug`', 'attached again')

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
            'DFU and back': (Keyboard(FULL, 0x47), Vendor(FULL, 0x48, dfu=True).identity),
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
            # One line each time, that of its attach. Only the first two unplugs have one as well.
            self.assertLessEqual(len(self.lines()) - before, times + 3)
            self.vm.sh('udevadm settle --timeout=60')
            self.wait_in_guest(0x46)
            self.vm.sh('hotplugger detach --keep 1-1')
            lines = len(self.lines())
            for _ in range(2):
                device.drop_off()
                time.sleep(0.2)
                device.come_back()
                time.sleep(3)
            self.vm.sh('udevadm settle --timeout=60')
            self.assertEqual(self.guest.ids(), [])
            self.assertEqual(len(self.lines()), lines)
            self.vm.sh('hotplugger attach 1-1')
            self.wait_in_guest(0x46)
        self.row('keyboard', 'resets every 3 s for ever',
                 'attached each time, udev idle; `detach --keep` ends it')


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

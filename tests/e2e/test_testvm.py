"""The test VM itself: what all other tests rely on.  No hotplugger in it."""
import os
import signal
import sys
import tempfile
import types
import unittest
from unittest import mock

from case import Case
from product import devpaths
from testvm import TestVm, VmError
from testvm.machine import Machine
from testvm.monitor import parse
from testvm.qtree import usb_devices


class HostTest(Case):
    """The host VM, its ports and its udev."""

    guest_kind = 'none'

    def test_commands_and_files(self):
        result = self.vm.exec('cat; echo err >&2; exit 3', stdin='in')
        self.assertEqual((result.rc, result.out, result.err), (3, 'in', 'err\n'))
        self.assertTrue(self.vm.exec('sleep 60', timeout=1).timed_out)
        self.assertLess(self.vm.exec('sleep 60 &').seconds, 30)
        with self.assertRaisesRegex(VmError, 'No such file'):
            self.vm.sh(['ls', '/nonexistent'])
        blob = os.urandom(300_000)
        self.vm.put(blob, '/tmp/new/blob', 0o755)
        self.assertEqual(self.vm.get('/tmp/new/blob'), blob)
        self.assertEqual(self.vm.sh('stat -c %a /tmp/new/blob'), '755\n')

    def test_udev_handles_a_plug_and_an_unplug(self):
        self.vm.rules('ACTION=="bind", SUBSYSTEM=="usb", RUN+="/bin/touch /run/%k"\n')
        with self.vm.monitor() as monitor:
            self.vm.plug('kbd', '10')
            self.vm.wait_for(lambda: self.vm.drivers() == {'1-10:1.0': 'usbhid'})
            self.vm.settle()
            self.vm.sh('ls /run/1-10')
            self.vm.unplug('10')
            monitor.wait(lambda event: event.source == 'UDEV' and event.action == 'remove'
                         and event.devpath == devpaths('10')[0])
        device = [event for event in monitor.events if event.devpath == devpaths('10')[0]]
        kernel = [event.action for event in device if event.source == 'KERNEL']
        self.assertEqual([action for action in kernel if action != 'change'],
                         ['add', 'bind', 'unbind', 'remove'])
        self.assertEqual(device[0].props['DEVTYPE'], 'usb_device')
        self.assertEqual(self.vm.drivers(), {})

    def test_several_at_once(self):
        self.vm.plug_together(('hub', '2'), ('kbd', '2.1'), ('mouse', '2.2'),
                               ('storage', 'xhci2:8'), ('uas', '12'))
        self.vm.wait_for(lambda: self.vm.drivers() == {
            '1-2:1.0': 'hub', '1-2.1:1.0': 'usbhid', '1-2.2:1.0': 'usbhid',
            '4-8:1.0': 'usb-storage', '2-12:1.0': 'uas'})
        self.vm.unplug_together('2', 'xhci2:8')
        self.vm.wait_for(lambda: self.vm.drivers() == {'2-12:1.0': 'uas'})
        self.vm.unplug_all()
        self.vm.wait_for(lambda: self.vm.drivers() == {})
        with self.assertRaises(VmError):
            self.vm.unplug('2')

    def test_each_kind_of_device(self):
        kinds = ('tablet', 'audio', 'serial', 'net', 'ccid')
        self.vm.plug_together(*((kind, str(port)) for port, kind in enumerate(kinds, 1)))
        self.vm.wait_for(lambda: {name[:3] for name in self.vm.drivers()}
                          == {'1-1', '1-2', '1-3', '1-4', '1-5'})

    def test_how_a_host_died(self):
        self.assertEqual(self.vm.died(), '')
        with self.vm.machine.paused():
            self.assertIn('does not answer', self.vm.died(patience=2))
        self.assertEqual(self.vm.died(), '')
        with TestVm() as other:
            other.up(guest='none')
            os.kill(other.machine._process.pid, signal.SIGSEGV)
            self.assertIn('was ended by SIGSEGV', other.died())
        self.assertEqual(other.died(), '')
        with TestVm() as other:
            other.up(guest='none')
            with self.assertRaises(VmError):
                other.sh('echo c > /proc/sysrq-trigger')
            self.assertRegex(other.died(), '(?s)exited with 0;.*sysrq triggered crash')

    def test_two_test_vms_are_apart(self):
        with TestVm() as other:
            other.up(guest='none')
            other.plug('kbd', '1')
            other.wait_for(other.drivers)
            self.assertEqual(self.vm.drivers(), {})
            folder = other.machine.folder
        self.assertFalse(other.machine.alive())
        self.assertFalse(os.path.exists(folder))


class GuestTest(Case):
    """Guests, and a keyboard that one of them is given by hand."""

    guest_kind = 'linux'

    def test_a_device_reaches_the_guest(self):
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: self.vm.drivers() == {'1-1:1.0': 'usbhid'})
        self.guest.qmp('device_add', driver='usb-host', id='kbd', bus='xhci0.0', hostbus=1,
                       hostport='1')
        self.vm.wait_for(lambda: self.guest.attached() == {'kbd': 'QEMU USB Keyboard'})
        self.assertEqual(self.guest.ids(), ['kbd'])
        self.vm.wait_for(lambda: self.guest.lsusb() == {'1-1': 'QEMU USB Keyboard'})
        self.vm.wait_for(lambda: self.vm.drivers() == {'1-1:1.0': 'usbfs'})
        opened = [time for time, text in self.guest.trace() if 'open_success' in text]
        seen = [time for time, text in self.guest.console() if 'Product: QEMU USB Key' in text]
        self.assertLess(opened[0], seen[0])
        self.assertLess(seen[0], self.vm.monotonic())
        self.vm.unplug('1')
        self.vm.wait_for(lambda: self.guest.attached() == {} and self.guest.lsusb() == {})
        self.assertEqual(self.guest.ids(), ['kbd'])
        self.assertEqual(self.guest.sh('echo a; false'), (1, 'a\n'))

    def test_a_second_guest(self):
        other = self.vm.guest('other')
        self.assertFalse(other.running())
        other.start('seabios', controllers=['qemu-xhci,id=usb'], extra=['-device', 'usb-kbd'])
        device, = other.usb()
        self.assertEqual((device.driver, device.bus, device.attached), ('usb-kbd', 'usb.0', True))
        self.assertEqual(self.guest.usb(), [])
        other.signal('KILL')
        self.vm.wait_for(lambda: not other.running())
        self.assertTrue(self.guest.running())


class MachineTest(unittest.TestCase):
    """The outer QEMU, where a real one is too fast to show it."""

    # Its socket is there before it listens.
    SLOW = f'''#!{sys.executable}
import re, socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(re.search('unix:([^,]+)', ' '.join(sys.argv))[1])
time.sleep(0.5)
server.listen()
client, _ = server.accept()
client.sendall(b'{{"QMP": {{}}}}\\n')
for _ in client.makefile():
    client.sendall(b'{{"return": {{}}}}\\n')
'''

    def test_a_qemu_that_listens_late(self):
        with tempfile.TemporaryDirectory() as folder:
            path = f'{folder}/qemu-system-x86_64'
            with open(path, 'w') as file:
                file.write(self.SLOW)
            os.chmod(path, 0o755)
            machine = Machine(f'{folder}/vm')
            try:
                with mock.patch.dict(os.environ, PATH=f'{folder}:{os.environ["PATH"]}'):
                    machine.start(types.SimpleNamespace(kernel='', initrd=''), 'disk')
                self.assertEqual(machine.qmp.execute('query-status'), {})
            finally:
                machine.stop()


class ParserTest(unittest.TestCase):
    """What is read out of other programs' text."""

    def test_qtree(self):
        attached, gone = usb_devices('''\
bus: main-system-bus
  dev: qemu-xhci, id "xhci0"
    p2 = 15 (0xf)
    bus: xhci0.0
      type usb-bus
      dev: usb-host, id "hotplugger-1-1-2"
        hostbus = 1 (0x1)
        hostport = "1"
        addr 0.1, port 1, speed 12, name QEMU USB Keyboard, attached
      dev: usb-host, id ""
        addr 0.0, port 2, speed 12, name QEMU, USB Mouse
''')
        self.assertEqual((attached.id, attached.bus, attached.port, attached.speed),
                         ('hotplugger-1-1-2', 'xhci0.0', '1', '12'))
        self.assertEqual((attached.name, attached.attached), ('QEMU USB Keyboard', True))
        self.assertEqual(attached.properties, {'hostbus': '1 (0x1)', 'hostport': '1'})
        self.assertEqual((gone.id, gone.name, gone.attached), ('', 'QEMU, USB Mouse', False))

    def test_monitor(self):
        event, = parse('''\
monitor will print the received events for:
KERNEL - the kernel uevent

KERNEL[12.5] add      /devices/usb1/1-1 (usb)
ACTION=add
PRODUCT=627/1/0

UDEV  [12.6] add      /devices/usb1/1-1 (usb)
ACTION=ad''')
        self.assertEqual(event, ('KERNEL', 12.5, 'add', '/devices/usb1/1-1',
                                 {'ACTION': 'add', 'PRODUCT': '627/1/0'}))

"""Who has a device: a program of the host, another object of a QEMU, or the guest."""
import json

from test_attach import AttachCase

# Takes interface 0 from its driver and claims it, as libusb does (linux/usbdevice_fs.h).
_CLAIM = '''
import fcntl, os, struct, sys, time
node = os.open(sys.argv[1], os.O_RDWR)
disconnect = struct.pack('@iiP', 0, 0x5516, 0)
try:
    fcntl.ioctl(node, 0xc0105512, disconnect)
except OSError:
    pass
fcntl.ioctl(node, 0x8004550f, struct.pack('@I', 0))
print('claimed', flush=True)
time.sleep(1000)
'''


class ClaimsTest(AttachCase):
    """With a real kernel and a guest that configures what it gets."""

    def claim(self, port):
        """A program of the host that claims the device; its process ID."""
        self.vm.put(_CLAIM.encode(), '/run/claim.py')
        number = self.vm.sh(f'cat /sys/bus/usb/devices/1-{port}/devnum').strip()
        self.vm.sh(['systemd-run', '--quiet', '--unit=claim', 'python3', '/run/claim.py',
                    f'/dev/bus/usb/001/{int(number):03}'])
        self.vm.wait_for(lambda: self.vm.drivers().get(f'1-{port}:1.0') == 'usbfs')
        return self.vm.sh('systemctl show --value -p MainPID claim').strip()

    def inputs(self):
        """How many input devices the guest has of USB."""
        return self.guest.sh('grep -c "Phys=usb" /proc/bus/input/devices')[1].strip()

    def status(self):
        """What `status` says of the first device of the guest."""
        report = json.loads(self.vm.sh('hotplugger status --json'))
        return report['virtual_machines'][0]['attached'][0]

    def test_a_program_loses_the_device_and_the_guest_can_use_it(self):
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: self.vm.drivers().get('1-1:1.0') == 'usbhid')
        pid = self.claim('1')
        self.install(delay=0)
        line = self.vm.sh('hotplugger sync').splitlines()[0]
        self.assertRegex(line, f'attached to guest port .*; taken from python3.* .process {pid}.')
        self.vm.wait_for(lambda: self.inputs() == '1')
        self.assertTrue(self.status()['in_use'])
        self.assertIn('in use by the guest', self.vm.sh('hotplugger status'))

    def test_a_program_keeps_the_device_if_drivers_are_not_unbound(self):
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: self.vm.drivers().get('1-1:1.0') == 'usbhid')
        pid = self.claim('1')
        self.install(delay=0, unbind_host_drivers='false')
        ended = self.vm.exec('hotplugger sync')
        self.assertEqual(ended.rc, 1)
        self.assertRegex(ended.out, f'not attached: used by python3.* .process {pid}.; stop the')
        self.assertEqual(self.guest.ids(), [])
        self.assertIn('device-claimed', self.vm.exec('hotplugger check --json').out)
        self.vm.sh('systemctl stop claim')
        self.vm.sh('hotplugger sync')
        self.vm.wait_for(lambda: self.inputs() == '1')

    def test_another_object_of_qemu_keeps_the_device(self):
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: self.vm.drivers().get('1-1:1.0') == 'usbhid')
        self.guest.qmp('device_add', driver='usb-host', id='own', hostbus=1, hostport='1')
        self.vm.wait_for(lambda: self.vm.drivers().get('1-1:1.0') == 'usbfs')
        self.install(delay=0)
        ended = self.vm.exec('hotplugger sync')
        self.assertEqual(ended.rc, 1)
        self.assertRegex(ended.out, f'not attached: qemu.* .process {self.guest.pid()}. uses it')
        self.assertEqual(self.guest.ids(), ['own'])
        self.assertEqual(self.inputs(), '1')
        self.assertIn('device-passed-twice', self.vm.exec('hotplugger check --json').out)

    def test_an_interface_that_is_not_authorized(self):
        self.install(delay=0)
        self.vm.sh('echo 0 > /sys/bus/usb/devices/usb1/interface_authorized_default')
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: 'has not authorized its interface 1-1:1.0'
                         in self.vm.journal('-t', 'hotplugger'))
        self.assertEqual(self.guest.ids(), [])
        self.assertIn('interface-not-authorized', self.vm.exec('hotplugger check --json').out)
        self.vm.sh('echo 1 > /sys/bus/usb/devices/1-1:1.0/authorized')
        self.vm.sh('hotplugger sync')
        self.vm.wait_for(lambda: self.inputs() == '1')

    def test_a_device_that_the_guest_does_not_configure(self):
        self.install(delay=0)
        self.guest.sh('echo 0 > /sys/bus/usb/devices/usb1/authorized_default')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.assertEqual((self.status()['attached'], self.status()['in_use']), (True, False))
        self.assertIn('attached, not configured by the guest', self.vm.sh('hotplugger status'))

"""Devices that the host has not authorized stay with it, and are attached when it has."""
from test_attach import AttachCase


class AuthorizeTest(AttachCase):
    """With authorized_default=0 on the root hub, as USBGuard sets it."""

    guest_kind = 'seabios'

    def test_attached_when_authorized(self):
        self.install(delay=0)
        self.vm.sh('echo 0 > /sys/bus/usb/devices/usb1/authorized_default')
        for kind in ('kbd', 'audio'):
            with self.subTest(kind=kind):
                self.vm.plug(kind, '1')
                self.devnum(kind, '1')
                self.vm.settle()
                self.assertEqual(self.guest.ids(), [])
                self.assertIn('the host has not authorized it', self.vm.journal('-t', 'hotplugger'))
                self.vm.sh('echo 1 > /sys/bus/usb/devices/1-1/authorized')
                self.wait_attached((kind, '1'))
                self.vm.unplug('1')
                self.wait_gone()

    def test_other_devices_start_nothing_for_their_interfaces(self):
        self.install(delay=0)
        self.vm.rules('SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_interface", '
                       'RUN+="/bin/sh -c \'echo $$HOTPLUGGER_UNAUTHORIZED >> /run/seen\'"\n',
                       '98-test.rules')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.settle()
        self.assertEqual(self.vm.exec('sort -u /run/seen').out, '\n')

"""A place in the guest: each device gets a port that takes it, and the same one again."""
import product
from test_attach import AttachCase

BOTH = ('qemu-xhci,id=xhci0,p2=15,p3=15', 'qemu-xhci,id=xhci1,p2=15,p3=15')
EACH = ('piix3-usb-uhci,id=uhci', 'usb-ehci,id=ehci', 'qemu-xhci,id=xhci,p2=4,p3=4')
# A high-speed device whose interrupt packets of 512 bytes no full-speed bus carries: all that QEMU
# compares (hw/usb/host-libusb.c: usb_host_speed_compat). None of its own devices is like that.
GADGET = r'''
set -e
modprobe usb_f_hid
mkdir /sys/kernel/config/usb_gadget/g
cd /sys/kernel/config/usb_gadget/g
echo 0x1d6b > idVendor
echo 0x0104 > idProduct
mkdir strings/0x409 configs/c.1 functions/hid.0
echo 'Big HID' > strings/0x409/product
echo 512 > functions/hid.0/report_length
printf '\x06\x00\xff\x09\x01\xa1\x01\x09\x01\x15\x00\x26\xff\x00\x75\x08\x96\x00\x02\x81\x02\xc0' \
    > functions/hid.0/report_desc
ln -s functions/hid.0 configs/c.1
ls /sys/class/udc > UDC
'''
# In Mb/s, as QEMU's devices are on the host. (QEMU has no device of low speed.)
SPEEDS = {'1': '12', '2': '12', '3': '480', '4': '5000'}


class PlaceCase(AttachCase):
    """Knows where in the guest a host's port has ended."""

    guest_kind = 'none'

    def places(self):
        """{host port: (bus, guest port, speed)} of what the guest really has."""
        return {device.properties['hostport']: (device.bus, device.port, device.speed)
                for device in self.guest.usb()
                if device.driver == 'usb-host' and device.attached}

    def wait_places(self, *ports, timeout=120):
        """Waits until exactly these ports of the host are in the guest; returns the places."""
        self.vm.wait_for(lambda: set(self.places()) == set(ports), timeout,
                          f'in the guest: {ports}')
        return self.places()

    def line(self, text):
        """Waits for hotplugger's line with that text."""
        def found():
            lines = self.vm.journal('-t', 'hotplugger').splitlines()
            return next((line for line in lines if text in line), None)
        return self.vm.wait_for(found, 120, f'a line with: {text}')


class ManyTest(PlaceCase):
    """More devices than a controller has ports."""

    def test_thirty_devices_fill_two_controllers_and_the_next_is_told(self):
        self.guest.start('seabios', controllers=BOTH)
        self.install({'windows': [str(port) for port in range(1, 13)]}, delay=0, timeout=30)
        # A hub in a hub in a hub, and two more: 7 + 7 + 8 + 8 = 30 places for devices.
        for hub in ('1', '1.8', '1.8.8', '2'):
            self.vm.plug('hub', hub)
        places = [f'1.{port}' for port in range(1, 8)]
        places += [f'1.8.{port}' for port in range(1, 8)]
        places += [f'1.8.8.{port}' for port in range(1, 9)]
        places += [f'2.{port}' for port in range(1, 9)]
        for number, place in enumerate(places):
            self.vm.plug(('kbd', 'mouse', 'tablet')[number % 3], place)
        there = self.wait_places(*places, timeout=600)
        self.assertEqual(len(there), 30)
        for host, (bus, port, speed) in there.items():
            # Behind QEMU's hub of 8 ports, which is of full speed, all are.
            self.assertEqual((host, speed), (host, '12'))
            self.assertIn(bus, ('xhci0.0', 'xhci1.0'))
            self.assertNotIn('.', port)
        self.assertEqual(len({(bus, port) for bus, port, _ in there.values()}), 30)
        self.assertFalse([device for device in self.guest.usb() if device.driver == 'usb-hub'])
        self.vm.plug('kbd', '3')
        line = self.line('port 1-3, ')
        self.assertIn('xhci0.0 and xhci1.0 have no free port; start QEMU with '
                      '-device qemu-xhci,id=xhci2,p2=15,p3=15', line)
        # One that leaves makes room.
        self.vm.unplug('3')
        self.vm.unplug('2.8')
        self.vm.plug('kbd', '4')
        self.wait_places('4', *places[:-1])


class SpeedTest(PlaceCase):
    """Buses of different speeds."""

    def plug_each(self):
        """Full speed twice, high, super: in ports 1 to 4."""
        self.vm.plug('audio', '1')
        self.vm.plug('serial', '2')
        self.vm.plug('kbd', '3', usb_version=2)
        self.vm.plug('storage', '4')

    def test_each_speed_lands_where_it_fits(self):
        self.guest.start('seabios', controllers=EACH)
        self.install({'windows': ['1', '2', '3', '4']}, delay=0)
        self.plug_each()
        there = self.wait_places('1', '2', '3', '4')
        self.assertEqual({host: speed for host, (_, _, speed) in there.items()}, SPEEDS)
        self.assertEqual({host: bus for host, (bus, _, _) in there.items()},
                         {'1': 'uhci.0', '2': 'uhci.0', '3': 'ehci.0', '4': 'xhci.0'})
        self.assertIn("to guest port ehci.0 1 at 480 Mb/s", self.line('port 1-3, '))

    def test_with_hubs_their_order_counts(self):
        self.guest.start('seabios', controllers=EACH)
        self.install({'windows': ['1', '2', '3', '4']}, delay=0, hubs='[xhci.0, ehci.0, uhci.0]')
        self.plug_each()
        there = self.wait_places('1', '2', '3', '4')
        self.assertEqual({host: (bus, speed) for host, (bus, _, speed) in there.items()},
                         {host: ('xhci.0', speed) for host, speed in SPEEDS.items()})

    def test_with_uhci_only_what_works_slowly_is_slow_and_says_so(self):
        self.guest.start('seabios', controllers=EACH[:1])
        self.install({'windows': ['4']}, delay=0)
        self.vm.plug('storage', '4')
        line = self.line('port 2-4, ')
        self.assertIn('at 12 Mb/s, below its own speed', line)
        self.assertIn('-device qemu-xhci', line)

    def test_with_uhci_only_what_is_too_fast_says_so(self):
        self.guest.start('seabios', controllers=EACH[:1])
        bus = self.vm.sh('modprobe dummy_hcd && cd /sys/devices/platform/dummy_hcd.0 && '
                          'echo usb*').strip()
        config = product.config({'windows': []}, delay=0)
        config += f'      - /devices/platform/dummy_hcd.0/{bus}\n'
        product.install(self.vm, self.binary, config)
        self.vm.sh(GADGET)
        line = self.line('Big HID')
        self.assertIn('not attached: uhci.0 takes 12 Mb/s at most, and the device does not work at '
                      'that speed; start QEMU with -device qemu-xhci,id=xhci0,p2=15,p3=15', line)
        self.assertEqual(self.guest.ids(), [])


class StableTest(PlaceCase):
    """What comes again finds its port."""

    def test_three_come_again_in_another_order(self):
        self.guest.start('seabios', controllers=BOTH)
        self.install({'windows': ['1', '2', '3', '5']}, delay=0)
        for kind, port in (('kbd', '1'), ('mouse', '2'), ('tablet', '3')):
            self.vm.plug(kind, port)
            self.vm.wait_for(lambda port=port: port in self.places(), 120)
        before = self.wait_places('1', '2', '3')
        for port in ('1', '2', '3'):
            self.vm.unplug(port)
        self.wait_gone()
        # One that was never there takes none of theirs.
        for kind, port in (('serial', '5'), ('tablet', '3'), ('kbd', '1'), ('mouse', '2')):
            self.vm.plug(kind, port)
            self.vm.wait_for(lambda port=port: port in self.places(), 120)
        after = self.wait_places('1', '2', '3', '5')
        self.assertEqual({port: after[port] for port in before}, before)
        self.assertNotIn(after['5'][:2], [place[:2] for place in before.values()])

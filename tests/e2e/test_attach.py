"""The main job: what is plugged into a configured port is in the guest, and gone when pulled."""
import json
import os

from case import Case

# Plugs and pulls in a row.
CYCLES = int(os.environ.get('HOTPLUGGER_TEST_CYCLES', '12'))
PRODUCTS = {
    'kbd': 'QEMU USB Keyboard',
    'mouse': 'QEMU USB Mouse',
    'storage': 'QEMU USB HARDDRIVE',
    'audio': 'QEMU USB Audio',
    'serial': 'QEMU USB SERIAL',
    'tablet': 'QEMU USB Tablet',
}
# As in fact on the host: super-speed devices are on the second bus of a controller.
BUS = {'storage': 2}


def device_id(kind, chain, devnum):
    """The id hotplugger gives a device of that kind in that port of the first controller."""
    return f'hotplugger-{BUS.get(kind, 1)}-{chain}-{devnum}'


class AttachCase(Case):
    """Plugs, pulls, and looks what the guest's QEMU has open."""

    def devnum(self, kind, chain):
        """The device number the kernel gave what is in that port."""
        folder = f'/sys/bus/usb/devices/{BUS.get(kind, 1)}-{chain}'
        return self.vm.wait_for(lambda: self.vm.exec(['cat', f'{folder}/devnum']).out.strip(),
                                 what=f'{kind} in port {chain} on the host')

    def wait_attached(self, *plugged, guest=None):
        """Waits until exactly these (kind, chain) are attached, each under its id."""
        expected = {device_id(kind, chain, self.devnum(kind, chain)): PRODUCTS[kind]
                    for kind, chain in plugged}
        guest = guest or self.guest
        self.vm.wait_for(lambda: guest.attached() == expected, 120,
                          f'attached: {expected}')
        return expected

    def findings(self, *levels):
        """What `check` finds, of these levels or of all."""
        found = json.loads(self.vm.exec('hotplugger check --json').out)['findings']
        return [finding for finding in found if not levels or finding['level'] in levels]

    def wait_gone(self, guest=None):
        """Waits until no object is left, and udevd is done with the last event."""
        guest = guest or self.guest
        self.vm.wait_for(lambda: guest.ids() == [], 120, 'no usb-host object in the guest')
        self.vm.settle()
        self.assertEqual(self.state_files(), [])

    def state_files(self):
        """The names of the ports that hotplugger remembers."""
        return self.vm.exec('ls /tmp/hotplugger | grep ^port-').out.split()

    def plug_and_pull(self, kind, port='1'):
        """One device there and back."""
        self.vm.plug(kind, port)
        self.wait_attached((kind, port))
        self.assertEqual(self.state_files(), [f'port-{BUS.get(kind, 1)}-{port}.json'])
        self.vm.unplug(port)
        self.wait_gone()


class KindsTest(AttachCase):
    """Each kind of device, with and without a delay."""

    def each_kind(self, delay):
        self.install(delay=delay)
        for kind in ('kbd', 'mouse', 'storage', 'audio', 'serial'):
            with self.subTest(kind=kind):
                self.plug_and_pull(kind)

    def test_each_kind_with_a_delay_of_1(self):
        self.each_kind(1)

    def test_each_kind_with_a_delay_of_0(self):
        self.each_kind(0)

    def test_the_guest_os_can_use_it(self):
        self.install(delay=0)
        self.vm.plug('storage', '1')
        self.wait_attached(('storage', '1'))
        self.vm.wait_for(lambda: 'QEMU USB HARDDRIVE' in self.guest.lsusb().values(), 60)
        self.vm.wait_for(lambda: 'RIGSTICK' in self.guest.sh('cat /dev/sda | head -c 4096 '
                                                              '| strings')[1], 60,
                          'the stick\'s label read in the guest')
        self.assertEqual(self.vm.drivers(), {'2-1:1.0': 'usbfs'})


class TopologyTest(AttachCase):
    """Ports beside, below and behind one another."""

    def together(self, delay):
        self.install({'windows': ['1', '2']}, delay=delay)
        self.vm.plug_together(('kbd', '1'), ('mouse', '2'))
        self.wait_attached(('kbd', '1'), ('mouse', '2'))
        self.vm.unplug_together('1', '2')
        self.wait_gone()

    def test_two_at_once_with_a_delay_of_1(self):
        self.together(1)

    def test_two_at_once_with_a_delay_of_0(self):
        self.together(0)

    def behind_a_hub(self, delay):
        self.install({'windows': ['2']}, delay=delay)
        self.vm.plug_together(('hub', '2'), ('kbd', '2.1'), ('mouse', '2.2'))
        self.wait_attached(('kbd', '2.1'), ('mouse', '2.2'))
        self.vm.plug('tablet', '2.3')
        self.wait_attached(('kbd', '2.1'), ('mouse', '2.2'), ('tablet', '2.3'))
        self.assertEqual(self.vm.drivers()['1-2:1.0'], 'hub')
        self.vm.unplug('2')
        self.wait_gone()

    def test_behind_a_hub_with_a_delay_of_1(self):
        self.behind_a_hub(1)

    def test_behind_a_hub_with_a_delay_of_0(self):
        self.behind_a_hub(0)

    def behind_two_hubs(self, delay):
        self.install({'windows': ['2']}, delay=delay)
        self.vm.plug('hub', '2')
        self.vm.plug('hub', '2.1')
        self.vm.plug('kbd', '2.1.4')
        self.wait_attached(('kbd', '2.1.4'))
        self.vm.unplug('2.1.4')
        self.wait_gone()

    def test_a_hub_in_a_hub_with_a_delay_of_1(self):
        self.behind_two_hubs(1)

    def test_a_hub_in_a_hub_with_a_delay_of_0(self):
        self.behind_two_hubs(0)

    def test_port_10_is_not_port_1(self):
        self.install({'windows': ['1']}, delay=0)
        self.vm.plug('mouse', '10')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.settle()
        self.assertEqual(self.vm.drivers()['1-10:1.0'], 'usbhid')
        self.assertEqual(self.state_files(), ['port-1-1.json'])
        self.assertNotIn('1-10', self.vm.journal('-t', 'hotplugger'))

    def test_each_vm_gets_its_own_ports(self):
        other = self.vm.guest('linux')
        other.start('seabios')
        self.install({'windows': ['1', '3'], 'linux': ['3.2', '2']}, delay=0)
        self.vm.plug_together(('kbd', '1'), ('mouse', '2'), ('hub', '3'), ('tablet', '3.1'),
                               ('serial', '3.2'))
        self.wait_attached(('kbd', '1'), ('tablet', '3.1'))
        self.wait_attached(('mouse', '2'), ('serial', '3.2'), guest=other)
        self.vm.unplug_all()
        self.wait_gone()
        self.wait_gone(other)


class MemoryTest(AttachCase):
    """Removal needs neither the state nor the config it began with."""

    guest_kind = 'seabios'

    def attached_keyboard(self):
        self.install(delay=0)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.vm.settle()

    def test_removed_with_the_state_deleted(self):
        self.attached_keyboard()
        self.vm.sh('rm -r /tmp/hotplugger')
        self.vm.unplug('1')
        self.wait_gone()

    def test_removed_with_the_port_gone_from_the_config(self):
        self.attached_keyboard()
        self.install({'windows': ['7']}, delay=0)
        self.vm.unplug('1')
        self.wait_gone()

    def test_removed_with_the_config_gone(self):
        self.attached_keyboard()
        self.vm.sh('rm /etc/hotplugger/config.yaml')
        self.vm.unplug('1')
        self.wait_gone()

    def test_synthetic_events_change_nothing(self):
        self.attached_keyboard()
        before = self.guest.trace()
        self.assertTrue(before, 'QEMU has opened the keyboard')
        # Not `remove`: libusb in QEMU takes that for an unplug.
        for action in ('add', 'bind', 'change'):
            self.vm.sh(f'udevadm trigger --settle --action={action} --subsystem-match=usb')
        self.vm.settle()
        self.assertEqual(len(self.guest.attached()), 1)
        self.assertEqual(self.guest.trace(), before)
        lines = self.vm.journal('-t', 'hotplugger').splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertEqual(self.state_files(), ['port-1-1.json'])
        self.vm.unplug('1')
        self.wait_gone()

    def test_many_times_there_and_back(self):
        self.install(delay=0)
        for _ in range(CYCLES):
            self.plug_and_pull('kbd')
        lines = self.vm.journal('-t', 'hotplugger').splitlines()
        self.assertEqual(sum(': attached ' in line for line in lines), CYCLES)
        # Of unplugs that follow each other within seconds only the first two have a line.
        unplugged = sum(': unplugged, detached ' in line for line in lines)
        self.assertIn(unplugged, range(2, CYCLES + 1))
        self.assertEqual(len(lines), CYCLES + unplugged)
        events = json.loads(self.vm.sh('hotplugger status --json --events 1000'))['events']
        self.assertEqual(sum(event['outcome'] == 'detached' for event in events), CYCLES)

"""Ports that stay ports: when bus numbers move, and whichever half of a connector a device is in."""
import json

from case import Case

CONFIG = '''virtual_machines:
  windows:
    socket: /run/vm/windows/qmp-sock
    delay: 0
    peer_ports: {peer_ports}
    ports:
'''
# In the VM as it boots: usb1 and usb2 at 14.0, usb3 and usb4 at 15.0.
CONTROLLERS = ('0000:00:14.0', '0000:00:15.0')


class NamesTest(Case):
    """Names without bus numbers, and both halves."""

    guest_kind = 'seabios'

    def configure(self, *ports, peer_ports='true'):
        """Installs hotplugger with these ports."""
        self.install()
        text = CONFIG.format(peer_ports=peer_ports) + ''.join(f'      - {port}\n' for port in ports)
        self.vm.put(text.encode(), '/etc/hotplugger/config.yaml', 0o644)

    def swap_buses(self):
        """Takes the controllers from their driver and gives them back in the other order."""
        for action, order in (('unbind', CONTROLLERS), ('bind', CONTROLLERS[::-1])):
            for controller in order:
                self.vm.sh(f'echo {controller} > /sys/bus/pci/drivers/xhci_hcd/{action}')
        self.vm.settle()

    def root_hubs(self):
        """{'usb1': '0000:00:14.0'}"""
        links = self.vm.sh('cd /sys/bus/usb/devices; for i in usb*; do readlink $i; done')
        return {path.split('/')[-1]: path.split('/')[-2] for path in links.split()}

    def ids(self):
        """The ports and bus numbers of the guest's devices: ['1-1']."""
        return sorted(name.removeprefix('hotplugger-').rpartition('-')[0]
                      for name in self.guest.ids())

    def wait_ids(self, *expected):
        """Waits until the guest has devices of exactly these ports."""
        self.vm.wait_for(lambda: self.ids() == sorted(expected), 120, f'in the guest: {expected}')

    def check(self):
        """{code: finding}, as the doctor has them."""
        out = self.vm.exec(['/usr/bin/hotplugger', 'check', '--json']).out
        return {finding['code']: finding for finding in json.loads(out)['findings']}

    def test_names_stay_when_bus_numbers_move(self):
        self.configure('pci-0000:00:14.0/usb2:1', 'pci-0000:00:14.0-usb-0:2',
                       'pci-0000:00:15.0-usbv2-0:1', '/devices/pci0000:00/0000:00:14.0/usb1/1-3')
        self.assertEqual(self.root_hubs()['usb1'], CONTROLLERS[0])
        for port in ('1', '2', 'xhci2:1', '3'):
            self.vm.plug('kbd', port)
        self.wait_ids('1-1', '1-2', '3-1', '1-3')
        self.assertNotIn('port-bus-moved', self.check())
        # The devices go with their controllers and come back with other bus numbers.
        self.swap_buses()
        self.assertEqual(self.root_hubs()['usb1'], CONTROLLERS[1])
        self.wait_ids('3-1', '3-2', '1-1')
        moved = self.check()['port-bus-moved']
        self.assertEqual(moved['where'], '/devices/pci0000:00/0000:00:14.0/usb1/1-3')
        # What the doctor says mends it: the name that stays.
        remedy = moved['remedy']
        self.assertEqual(remedy['add'], '- pci-0000:00:14.0/usb2:3')
        self.vm.sh(f"sed -i 's,{remedy['remove']},{remedy['add']},' /etc/hotplugger/config.yaml")
        self.assertNotIn('port-bus-moved', self.check())
        self.vm.unplug('3')
        self.vm.plug('kbd', '3')
        self.wait_ids('3-1', '3-2', '3-3', '1-1')
        # Without any memory, too.
        self.vm.sh('rm -f /tmp/hotplugger/port-*')
        for port in ('1', '2', 'xhci2:1', '3'):
            self.vm.unplug(port)
        self.wait_ids()

    def test_both_halves_of_a_connector(self):
        self.configure('pci-0000:00:14.0/usb2:1')
        self.one_after_the_other('1-1', '2-1')
        # A DEVPATH stands for the connector as well.
        self.configure('/devices/pci0000:00/0000:00:14.0/usb2/2-1')
        self.one_after_the_other('1-1', '2-1')
        self.assertNotIn('port-without-peer', self.check())

    def test_one_half_alone(self):
        self.configure('pci-0000:00:14.0/usb2:1', peer_ports='false')
        self.one_after_the_other('1-1', None)
        self.assertEqual(self.check()['port-without-peer']['level'], 'note')

    def one_after_the_other(self, keyboard, stick):
        """A keyboard and a super-speed stick in connector 1: who of them reaches the guest."""
        for kind, port, node in (('kbd', keyboard, '1-1'), ('storage', stick, '2-1')):
            self.vm.plug(kind, '1')
            self.vm.wait_for(lambda path=f'/sys/bus/usb/devices/{node}/devnum':
                              self.vm.exec(['cat', path]).rc == 0, what=f'{kind} on the host')
            self.vm.settle()
            self.wait_ids(*filter(None, [port]))
            self.vm.unplug('1')
            self.vm.settle()
            self.wait_ids()

    def test_a_hub_in_the_other_half(self):
        # QEMU's hub is a full-speed one: it comes up in the USB 2 half.
        self.configure('pci-0000:00:14.0/usb3:2')
        self.vm.plug('hub', '2')
        self.vm.plug('kbd', '2.1')
        self.wait_ids('1-2.1')
        self.vm.sh('rm -f /tmp/hotplugger/port-*')
        self.vm.unplug('2')
        self.wait_ids()

    def test_what_udev_calls_a_port_is_its_name(self):
        self.configure('pci-0000:00:15.0/usb2:1')
        self.vm.plug('hub', '2')
        self.vm.plug('kbd', '2.1')
        self.vm.wait_for(lambda: self.vm.exec('cat /sys/bus/usb/devices/1-2.1/devnum').rc == 0,
                          what='the keyboard on the host')
        self.vm.settle()
        for variable in ('ID_PATH', 'ID_PATH_WITH_USB_REVISION'):
            name = self.vm.sh(['udevadm', 'info', '-q', 'property', '--value', '--property',
                                variable, '/sys/bus/usb/devices/1-2.1']).strip()
            if not name:                    # older than systemd 254
                continue
            with self.subTest(name):
                self.configure(name)
                self.vm.unplug('2.1')
                self.vm.plug('kbd', '2.1')
                self.wait_ids('1-2.1')
                self.vm.unplug('2.1')
                self.wait_ids()
                self.vm.plug('kbd', '2.1')
                self.wait_ids('1-2.1')

    def test_a_controller_that_is_no_pci_device(self):
        if self.vm.exec('modprobe vhci_hcd').rc != 0:
            self.skipTest('the host VM has no vhci_hcd')
        self.vm.settle()
        self.configure('platform-vhci_hcd.0/usb2:1')
        told = self.vm.sh('/usr/bin/hotplugger ports')
        self.assertRegex(told, r'windows .*platform-vhci_hcd\.0/usb2:1\n')
        self.assertRegex(told, r'platform-vhci_hcd\.0/usb3:1\n')
        self.assertIn('port-there', self.check())

"""Host controllers of other kinds than xHCI: an EHCI with its companions, and one behind bridges."""
import json
import re

import product
from case import Case

EHCI = 'pci-0000:00:1d.7'


class ControllersTest(Case):
    """An ICH9 has an EHCI of six ports and three UHCIs of two: together six connectors."""

    guest_kind = 'seabios'
    devices = ('ich9-usb-ehci1,id=ehci,addr=1d.7,multifunction=on',
               'ich9-usb-uhci1,masterbus=ehci.0,firstport=0,addr=1d.0,multifunction=on',
               'ich9-usb-uhci2,masterbus=ehci.0,firstport=2,addr=1d.1,multifunction=on',
               'ich9-usb-uhci3,masterbus=ehci.0,firstport=4,addr=1d.2,multifunction=on',
               'pcie-root-port,id=root,addr=6,chassis=1', 'pcie-pci-bridge,id=bridge,bus=root',
               'qemu-xhci,id=far,bus=bridge,addr=3,p2=4,p3=4')

    def devpath(self, product_name):
        """The DEVPATH of the only device of that name, once it is there."""
        script = f'for d in /sys/bus/usb/devices/*-*; do grep -qs "{product_name}" $d/product && ' \
                 f'readlink -f $d; done'
        found = self.vm.wait_for(lambda: self.vm.exec(script).out.split(),
                                 what=f'a {product_name} on the host')
        return found[0].removeprefix('/sys')

    def configure(self, *ports):
        lines = ['virtual_machines:', '  windows:', '    socket: /run/vm/windows/qmp-sock',
                 '    delay: 0', '    timeout: 30', '    ports:', *[f'      - {port}' for port in ports]]
        product.install(self.vm, self.binary, '\n'.join(lines) + '\n')

    def attached_after(self, kind, port, **options):
        """Plugs it, waits until the guest has it, pulls it; returns its DEVPATH."""
        self.vm.plug(kind, port, **options)
        try:
            devpath = self.devpath('QEMU USB')
            self.vm.wait_for(self.guest.attached, what=f'{devpath} in the guest')
        finally:
            self.vm.unplug(port)
        self.vm.wait_for(lambda: not self.guest.ids(), what='the guest without it')
        return devpath

    def test_both_speeds_of_a_connector_reach_the_vm(self):
        fast_and_slow = {
            f'{EHCI}/usb2:3': ('1d.7/usb', '1d.1/usb'),
            'pci-0000:00:1d.1/usb1:1': ('1d.7/usb', '1d.1/usb'),
        }
        for name, (fast, slow) in fast_and_slow.items():
            self.configure(name)
            for version, place in ((1, slow), (2, fast)):
                with self.subTest(name=name, version=version):
                    devpath = self.attached_after('kbd', 'ehci:3', usb_version=version)
                    self.assertIn(place, devpath)
        report = json.loads(self.vm.exec('hotplugger check --json').out)
        codes = [finding['code'] for finding in report['findings']]
        self.assertIn('port-there', codes)
        self.assertNotIn('port-companion', codes)
        ports = self.vm.exec('hotplugger ports').out
        self.assertRegex(ports, r'with \d-3\?')
        # Another connector is not the VM's.
        self.vm.plug('kbd', 'ehci:2', usb_version=1)
        self.devpath('QEMU USB')
        self.vm.settle()
        self.assertFalse(self.guest.ids())

    def test_udevs_names_are_accepted_as_they_are(self):
        self.configure()
        for port, options in (('ehci:3', {'usb_version': 1}), ('ehci:5', {'usb_version': 2}),
                              ('far:2', {}), ('xhci2:1', {})):
            with self.subTest(port=port, **options):
                self.vm.plug('kbd', port, **options)
                devpath = self.devpath('QEMU USB')
                printed = self.vm.exec(f'udevadm test-builtin path_id {devpath} 2>/dev/null').out
                name = re.search(r'ID_PATH=(\S+)', printed)[1]
                self.configure(name)
                said = self.vm.exec(f'hotplugger simulate /sys{devpath}')
                self.assertIn('windows', said.out, f'{name}: {said}')
                listed = self.vm.exec('hotplugger check -v').out
                self.assertRegex(listed, rf'ok +{re.escape(name)}: a port of this host', listed)
                self.vm.unplug(port)
                self.vm.settle()        # else the next look finds this device

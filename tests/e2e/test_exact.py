"""A rule that names the ports of the config: udev starts nothing for all others."""
import product
from test_attach import AttachCase


class ExactTest(AttachCase):
    """`install --exact`."""

    guest_kind = 'seabios'

    def runs(self, device):
        """Whether udev would start hotplugger on its `bind`."""
        said = self.rig.exec(f'udevadm test -a bind /sys/bus/usb/devices/{device} 2>&1').out
        return 'hotplugger udev' in said

    def test_only_the_configured_ports(self):
        self.install({'windows': ['1']}, delay=0)
        self.rig.sh('hotplugger install --exact --no-systemd')
        for kind, port in (('kbd', '1'), ('kbd', '4'), ('storage', '5')):
            self.rig.plug(kind, port)
        self.wait_attached(('kbd', '1'))
        self.rig.settle()
        self.assertTrue(self.runs('1-1'))
        self.assertFalse(self.runs('1-4'))
        self.assertFalse(self.runs('2-5'))
        self.assertNotIn('rule-stale', self.rig.exec('hotplugger check --json').out)

        # The config has another port now: what is in the guest still leaves it.
        text = product.config({'windows': ['4']}, timeout=30, delay=0)
        self.rig.put(text.encode(), '/etc/hotplugger/config.yaml', 0o644)
        self.assertIn('rule-stale', self.rig.exec('hotplugger check --json').out)
        self.rig.unplug('1')
        self.wait_gone()
        self.rig.sh('hotplugger install --no-systemd')
        self.assertNotIn('rule-stale', self.rig.exec('hotplugger check --json').out)
        self.rig.unplug('4')
        self.rig.settle()
        self.rig.plug('kbd', '4')
        self.rig.settle()
        self.wait_attached(('kbd', '4'))

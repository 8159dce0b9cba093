"""The doctor on a host that is whole, and on one where something is missing."""
import json

from test_attach import AttachCase


class CheckTest(AttachCase):
    """hotplugger check, as root on the host."""

    def check(self, *arguments):
        return self.vm.exec(['/usr/bin/hotplugger', 'check', *arguments])

    def test_a_sound_host_gets_one_line(self):
        self.install(delay=0)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        result = self.check()
        lines = result.out.splitlines()
        self.assertEqual(len(lines), 1, self.check('-v').out)
        self.assertIn('no problem found: 1 VM, 2 ports, rule, state', lines[0])

    def test_a_missing_half_and_a_missing_rule_are_found(self):
        self.install(delay=0, peer_ports='false')
        self.vm.sh('sed -i /usb2/d /etc/hotplugger/config.yaml; '
                    'rm /etc/udev/rules.d/99-hotplugger.rules')
        findings = json.loads(self.check('--json').out)['findings']
        codes = {finding['code']: finding for finding in findings}
        self.assertEqual(codes['rule-none']['remedy']['run'], 'hotplugger install')
        self.assertEqual(codes['port-without-peer']['remedy']['add'],
                         '- pci-0000:00:14.0/usb3:1')
        self.vm.sh('/usr/bin/hotplugger install')
        codes = [finding['code'] for finding in json.loads(self.check('--json').out)['findings']]
        self.assertIn('rule-installed', codes)
        self.assertNotIn('rule-none', codes)

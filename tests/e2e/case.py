"""What every end-to-end test is made from: a test case that has a host VM of its own."""
import unittest

import product
from testvm import TestVm, VmError


class Case(unittest.TestCase):
    """Each test begins with a fresh host VM, self.vm, out of a snapshot: that takes a second,
    less than tidying up behind the test before, and leaves nothing of it."""

    guest_kind = 'linux'            # 'linux', 'seabios' or 'none'
    binary = product.BINARY         # run.py --binary
    evidence = ''                   # the journal of a test that is over
    devices = ()                    # more for the -device of the host VM's QEMU; then it boots
    guest = None                    # until the host VM is up
    died = ''                       # how its host VM or guest failed, if it did so by itself

    def setUp(self):
        self.vm = TestVm()
        self.addCleanup(self.vm.down)
        self.addCleanup(self._look_after)
        self.vm.up(guest=self.guest_kind, devices=self.devices)
        self.guest = self.vm.guest()
        self._start = self.vm.agent.clocks()['realtime']
        self.addCleanup(self._keep_evidence)

    def install(self, ports=None, **settings):
        """Installs hotplugger with a config for these ports, {'windows': ['1']} by default;
        settings are the virtual machine's (delay=0.2).  QEMU gets more time than it needs on
        hardware: all is emulated here, on a machine that may be busy."""
        text = product.config(ports or {'windows': ['1']}, **{'timeout': 30, **settings})
        product.install(self.vm, self.binary, text)

    def _look_after(self):
        # The nested guest's CPU stands still now and then, where TCG emulates SVM for it.
        self.died = self.vm.died() or getattr(self.guest, 'broken', '')

    def _keep_evidence(self):
        try:
            self.evidence = self.vm.journal(f'--since=@{self._start:.0f}',
                                             'SYSLOG_IDENTIFIER=hotplugger', '+',
                                             '_SYSTEMD_UNIT=systemd-udevd.service')
        except VmError as error:
            self.evidence = f'no journal: {error}\n'

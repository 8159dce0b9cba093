"""A host without systemd: sysvinit, udevd, syslog and a VM that a script starts."""
from test_start import PLUGGED, SCRIPT, StartCase

LOG = '/var/log/syslog'


class SysvinitTest(StartCase):
    """Plug, unplug, cold plug and `check`."""

    guest_kind = 'sysvinit'

    def setUp(self):
        super().setUp()
        self.put_script()

    def _keep_evidence(self):
        self.evidence = '\n'.join(self.lines())

    def lines(self):
        """hotplugger's lines in the log."""
        return self.vm.exec(['grep', ' hotplugger', LOG]).out.splitlines()

    def start(self):
        """As a user's script does it, from an init script or a terminal."""
        self.vm.sh(f'setsid {SCRIPT} >{self.guest.folder}/qemu.log 2>&1 </dev/null &')
        self.wait_running()

    def kill(self):
        self.vm.sh(['pkill', '-KILL', 'qemu-system'])
        self.vm.wait_for(lambda: self.vm.exec(['pgrep', 'qemu-system']).rc != 0, 60, 'its end')

    def test_plug_unplug_and_cold_plug(self):
        self.assertEqual(self.vm.sh('cat /proc/1/comm').strip(), 'init')
        self.assertNotEqual(self.vm.exec('ls -d /run/systemd/system').rc, 0)
        self.plug_all()
        self.start()
        self.wait_attached(*PLUGGED)
        self.wait_line('attached')
        self.vm.unplug('1')
        self.wait_line('detached')
        self.vm.plug('tablet', '1')
        self.wait_attached(('tablet', '1'), *PLUGGED[1:])
        self.kill()
        self.vm.unplug('1')
        self.vm.plug('kbd', '1')
        self.vm.settle()
        self.start()
        self.wait_attached(*PLUGGED)

    def test_install_and_check(self):
        self.plug_all()
        self.vm.sh('rm /etc/udev/rules.d/99-hotplugger.rules')
        said = self.vm.sh('hotplugger install')
        self.assertIn('write   /etc/udev/rules.d/99-hotplugger.rules', said)
        self.assertNotIn('systemctl', said)
        self.assertNotIn('write   /etc/systemd', said)
        self.start()
        self.wait_attached(*PLUGGED)
        self.vm.unplug('1')
        self.wait_line('detached')
        self.assertEqual(self.findings('error', 'warning'), [])
        note, = [note for note in self.findings('note') if note['code'] == 'unit-none']
        self.assertIn('in the script that starts the VM', note['remedy']['text'])
        self.vm.sh('/etc/init.d/udev stop')
        stopped, = self.findings('error')
        self.assertEqual(stopped['code'], 'udevd-stopped')
        self.vm.sh(stopped['remedy']['run'])
        self.assertEqual(self.findings('error', 'warning'), [])
        self.vm.plug('kbd', '1')
        self.wait_attached(*PLUGGED)
        self.vm.sh('hotplugger uninstall')
        self.assertEqual(self.vm.sh('find /etc /usr/lib -name "*hotplugger*"').split(),
                         ['/etc/hotplugger'])

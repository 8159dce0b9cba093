"""The state directory: another user cannot use it to get in the way."""
from test_attach import AttachCase

# As another user who was first: the directory, and the locks that an event takes.
_SQUATTER = b"""mkdir -m 777 /tmp/hotplugger && cd /tmp/hotplugger || exit 1
for name in records hold-1-1; do
    flock $name.lock sleep 600 &
done
wait
"""


class StateTest(AttachCase):
    """With systemd-tmpfiles as a package installs it."""

    guest_kind = 'seabios'

    def squat(self):
        """Another user is first."""
        self.install(delay=0)
        self.vm.sh('rm -rf /tmp/hotplugger')
        self.vm.put(_SQUATTER, '/run/squatter', 0o755)
        self.vm.sh('systemd-run --quiet --unit=squatter --uid=nobody sh /run/squatter')
        self.vm.wait_for(lambda: self.vm.exec('test -e /tmp/hotplugger/hold-1-1.lock').rc == 0, 60,
                         "the other user's files")

    def test_a_directory_of_another_user_is_not_adopted(self):
        self.squat()
        self.vm.sh('hotplugger install >/dev/null; systemd-tmpfiles --create hotplugger.conf')
        self.assertEqual(self.vm.sh('stat -c %U /tmp/hotplugger').strip(), 'nobody')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        line = self.vm.journal('-t', 'hotplugger')
        self.assertIn('state is kept in /run/hotplugger', line)
        self.assertIn('state-unsafe', self.vm.exec('hotplugger check --json').out)
        self.vm.unplug('1')
        self.wait_gone()

    def test_a_file_of_another_user_is_made_anew(self):
        self.squat()
        # As after an older version, whose tmpfiles entry adopted the directory.
        self.vm.sh('chown root:root /tmp/hotplugger; chmod 700 /tmp/hotplugger')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.assertEqual(self.vm.sh('stat -c %U /tmp/hotplugger/hold-1-1.lock').strip(), 'root')
        self.assertEqual(self.state_files(), ['port-1-1.json'])
        self.vm.unplug('1')
        self.wait_gone()

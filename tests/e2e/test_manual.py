"""What a person runs: `edit`, `watch`, `detach --vm` before a state is saved; and `only:`, which he
writes."""
import json

from test_attach import AttachCase


class ManualTest(AttachCase):
    """One guest with two ports."""

    guest_kind = 'seabios'

    def setUp(self):
        super().setUp()
        self.install({'windows': ['1', '2']}, delay=0)

    def test_state_is_saved_and_restored(self):
        self.vm.plug('kbd', '1')
        self.vm.plug('storage', '2')
        both = {('kbd', '1'), ('storage', '2')}
        self.wait_attached(*both)
        self.vm.sh('hotplugger detach --vm windows')
        self.assertEqual(self.guest.ids(), [])
        self.guest.qmp('stop')
        self.guest.qmp('migrate', uri='exec:cat >/var/tmp/windows.state')
        self.vm.wait_for(lambda: self.guest.qmp('query-migrate').get('status') == 'completed',
                         what='the saved state')
        self.vm.sh('udevadm trigger --settle --action=bind /sys/bus/usb/devices/1-1')
        self.assertEqual(self.guest.ids(), [], 'its devices stay away while it is saved')
        self.guest.stop()
        # The VM gets its devices again when it is started again.
        self.guest.start('seabios', extra=['-incoming', 'defer'])
        self.guest.qmp('migrate-incoming', uri='exec:cat /var/tmp/windows.state')
        self.vm.wait_for(lambda: self.guest.qmp('query-status')['status'] in ('paused', 'running'),
                         what='the restored state')
        self.guest.qmp('cont')
        self.vm.sh('hotplugger sync windows')
        self.wait_attached(*both)

    def test_watch_shows_what_status_knows(self):
        self.watch()
        self.vm.plug('kbd', '1')
        self.vm.wait_for(lambda: self.outcomes() == ['attached'], 60, 'the plug')
        self.vm.unplug('1')
        self.vm.wait_for(lambda: self.outcomes() == ['attached', 'detached'], 60, 'the pull')
        self.assertEqual(self.watched(), self.known())
        self.vm.sh('pkill -KILL -f "^hotplugger watch"')
        self.vm.plug('storage', '2')
        self.wait_attached(('storage', '2'))
        self.watch()
        self.vm.wait_for(lambda: self.outcomes()[2:] == ['attached'], 60, 'what it missed')
        self.vm.unplug('2')
        self.vm.wait_for(lambda: self.outcomes()[3:] == ['detached'], 60, 'the pull')
        self.assertEqual(self.watched(), self.known())

    def watch(self):
        self.vm.sh('setsid hotplugger watch --json --events 100 >/run/watched </dev/null 2>&1 &')

    def watched(self):
        """The events that `watch` has shown."""
        return [json.loads(line) for line in self.vm.sh('cat /run/watched').splitlines()]

    def outcomes(self):
        return [event['outcome'] for event in self.watched()]

    def known(self):
        """The events that `status` shows."""
        return json.loads(self.vm.sh('hotplugger status --json --events 100'))['events']

    def test_edit_replaces_the_config_by_one_that_can_be_read(self):
        before = self.vm.sh('cat /etc/hotplugger/config.yaml')
        ended = self.vm.exec("EDITOR='sed -i s/delay:/dellay:/' hotplugger edit </dev/null")
        self.assertNotEqual(ended.rc, 0)
        self.assertIn('unknown field `dellay`', ended.out + ended.err)
        self.assertEqual(self.vm.sh('cat /etc/hotplugger/config.yaml'), before)
        self.vm.sh("EDITOR='sed -i /usb.*-2/d' hotplugger edit </dev/null")
        self.vm.plug('kbd', '2')
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))

    def test_only_lets_nothing_else_through(self):
        self.vm.sh("sed -i 's/    ports:/    only: [class: hid]\\n    ports:/' "
                   '/etc/hotplugger/config.yaml')
        self.vm.plug('storage', '1')
        self.vm.plug('kbd', '2')
        self.wait_attached(('kbd', '2'))
        lines = self.vm.journal('-t', 'hotplugger')
        self.assertIn('the config lets only `class: 03` through', lines)

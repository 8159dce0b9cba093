"""simulate tells beforehand what the udev call then does."""
import json

from test_attach import AttachCase


class SimulateTest(AttachCase):
    """Events are recorded while hotplugger handles them, and played afterwards."""

    guest_kind = 'seabios'

    def live(self):
        """What hotplugger did: [(outcome, port, id)] from its journal."""
        entries = (json.loads(line) for line in
                   self.vm.journal('-t', 'hotplugger', '-o', 'json').splitlines())
        return sorted((entry['HOTPLUGGER_OUTCOME'], entry['HOTPLUGGER_PORT'],
                       entry['HOTPLUGGER_DEVICE_ID']) for entry in entries)

    def played(self, recording):
        """What simulate tells of a recording: [(outcome, port, id)] of the events with a line in
        the journal, and the QMP commands of each."""
        self.vm.put(recording.encode(), '/run/recording.txt')
        events = json.loads(self.vm.sh('hotplugger simulate /run/recording.txt --running --json'))
        outcomes = []
        for event in events:
            self.assertEqual(event['exit_status'], 0, event)
            if event['outcome'] in ('skipped', 'recorded'):
                continue
            sent = [step['arguments']['id'] for step in event['steps'] if step['step'] == 'qmp'
                    and step['execute'] in ('device_add', 'device_del')]
            outcomes.append((event['outcome'], event['devpath'].rpartition('/')[2], sent[0]))
        return sorted(outcomes)

    def compare(self, *plugged):
        self.install({'windows': ['1', '2']}, delay=0)
        with self.vm.monitor() as monitor:
            self.vm.plug_together(*plugged)
            self.wait_attached(*(device for device in plugged if device[0] != 'hub'))
            self.vm.settle()
            self.vm.unplug_all()
            self.wait_gone()
        live = self.live()
        self.assertEqual(len(live), 2 * sum(kind != 'hub' for kind, _ in plugged), live)
        self.assertEqual(self.played(monitor.text), live)

    def test_a_keyboard(self):
        self.compare(('kbd', '1'))

    def test_storage_and_audio(self):
        self.compare(('storage', '1'), ('audio', '2'))

    def test_a_hub_with_two(self):
        self.compare(('hub', '2'), ('mouse', '2.1'), ('serial', '2.2'))

    def test_udevadm_test_shows_our_line(self):
        self.install(delay=0)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        shown = self.vm.sh('udevadm test --action=bind /sys/bus/usb/devices/1-1 2>&1 '
                            '| grep hotplugger')
        self.assertIn('/usr/bin/hotplugger udev', shown)

"""Nothing is run by hand: what was plugged in before a guest ran is in it, however it is started."""
import contextlib
import json
import re
import shlex

from testvm import VmError
from test_attach import PRODUCTS
from test_stay import StayCase

PLUGGED = [('kbd', '1'), ('mouse', '2.1'), ('storage', '3')]
SOCKET = '/run/vm/windows/qmp-sock'
SCRIPT = '/root/start'
UNIT = 'hotplugger-sync@windows'
HOOK = '/etc/libvirt/hooks/qemu.d/hotplugger'
SLEEP = '/usr/lib/systemd/system-sleep/hotplugger'
# Calls the hook as libvirt does: XML on standard input, output read until the pipes are closed.
LIBVIRT = '''
import json, subprocess, time
began = time.monotonic()
ended = subprocess.run([%r, 'windows', 'started', 'begin', '-'], input=b'<domain/>' * 10000,
                       capture_output=True)
print(json.dumps([ended.returncode, ended.stdout.decode() + ended.stderr.decode(),
                  time.monotonic() - began]))
''' % HOOK


class StartCase(StayCase):
    """Devices are plugged before the guest runs."""

    guest_kind = 'none'

    def plug_all(self, **settings):
        self.install({'windows': ['1', '2', '3']}, delay=0, **settings)
        self.vm.plug('hub', '2')
        for kind, port in PLUGGED:
            self.vm.plug(kind, port)
        self.vm.settle()
        self.wait_driver('2-3:1.0', 'usb-storage')

    def hotplugger_install(self, *arguments):
        return self.vm.sh(['hotplugger', 'install', *arguments])

    def put_script(self):
        """Makes the script of a user's that starts the guest, as docs/starting.md has it."""
        qemu = shlex.join(self.guest.command('seabios'))
        self.vm.sh(['mkdir', '-p', self.guest.folder])
        self.vm.put(f'#!/bin/sh\n{qemu} &\nhotplugger sync windows --wait 120\nwait\n'.encode(),
                    SCRIPT, 0o755)

    def wait_running(self):
        """Waits until the guest's QEMU answers."""
        def answers():
            with contextlib.suppress(VmError):
                return self.guest.qmp('query-status')['running']
            return False
        self.vm.wait_for(answers, 120, 'QEMU')

    def start_in_place(self):
        """Starts the guest where the socket of the one before may still lie."""
        self.vm.sh(['systemd-run', '--quiet', f'--unit={self.guest.unit}', '--collect',
                     *self.guest.command('seabios')])
        self.wait_running()

    def kill(self):
        self.guest.signal('KILL')
        self.vm.wait_for(lambda: not self.guest.running())

    def attached_by(self, what):
        """Waits until all are attached, and prints how long it took."""
        self.wait_attached(*PLUGGED)
        made = float(self.vm.sh(['stat', '-c', '%.9Y', SOCKET])) - self.vm.realtime_shift()
        lines = [line for line in self.lines() if ': attached ' in line][-len(PLUGGED):]
        last = max(float(re.match(r'\[ *([\d.]+)\]', line)[1]) for line in lines)
        print(f'    {what}: {len(PLUGGED)} devices attached {last - made:.2f} s after the socket '
              'was made')

    def starts(self):
        """How often the unit has been started."""
        return self.vm.sh(['journalctl', '-q', '-o', 'cat', '-u', UNIT]).count('Starting ')


class SystemdTest(StartCase):
    """The units of `install`."""

    def test_started_killed_started_and_ended(self):
        self.plug_all(return_to_host='true')
        self.hotplugger_install()
        self.assertEqual(self.vm.sh(['systemctl', 'is-enabled', f'{UNIT}.path']).strip(),
                         'enabled')
        self.guest.start('seabios')
        self.attached_by('started')
        self.kill()
        self.start_in_place()
        self.attached_by('started again after kill -9')
        self.guest.qmp('quit')
        for interface, driver in (('1-1:1.0', 'usbhid'), ('1-2.1:1.0', 'usbhid'),
                                  ('2-3:1.0', 'usb-storage')):
            self.wait_driver(interface, driver)
        self.guest.start('seabios')
        self.attached_by('started after it had ended')

    def test_a_socket_that_was_left_makes_nobody_spin(self):
        self.plug_all()
        self.hotplugger_install()
        self.guest.start('seabios')
        self.attached_by('started')
        self.wait_idle()
        self.kill()
        before, jiffies = self.starts(), self.pid_1()
        self.vm.sh('sleep 10', timeout=120)
        print(f'    10 s beside a socket that a killed QEMU left: the unit was started '
              f'{self.starts() - before} times; all of PID 1 took '
              f'{(self.pid_1() - jiffies) / 100:.2f} s of CPU time')
        self.assertEqual(self.starts(), before)
        self.vm.sh(f'systemctl start --no-block {UNIT}; sleep 10')
        shown = self.vm.sh(['systemctl', 'show', '-p', 'CPUUsageNSec,SubState', f'{UNIT}.service'])
        self.assertIn('SubState=start', shown, 'it waits')
        usage = int(re.search(r'CPUUsageNSec=(\d+)', shown)[1])
        print(f'    10 s of `sync --wait 60 --if-started` beside it took {usage / 1e9:.2f} s of CPU time')
        self.start_in_place()
        self.attached_by('started beside it')

    def test_many_starts_in_a_row(self):
        self.plug_all()
        self.hotplugger_install()
        for _ in range(8):
            self.vm.sh(f'mkdir -p /run/vm/windows; python3 -c "import socket; '
                        f'socket.socket(socket.AF_UNIX).bind(\'{SOCKET}\')"; sleep 0.3; '
                        f'rm {SOCKET}; sleep 0.3')
        self.guest.start('seabios')
        self.attached_by('after eight that came and went')

    def test_a_config_that_changes(self):
        self.plug_all()
        self.vm.sh("sed 's/windows/my vm-1/' -i /etc/hotplugger/config.yaml")
        self.hotplugger_install()
        self.vm.sh(f'mkdir -p "/run/vm/my vm-1"; sed "s|/run/vm/my vm-1|/run/vm/windows|" -i '
                    '/etc/hotplugger/config.yaml')
        stale, = [finding for finding in self.findings() if finding['code'] == 'unit-stale']
        self.assertEqual(stale['what'], 'it watches /run/vm/my vm-1/qmp-sock, but the config has '
                         f'{SOCKET}')
        self.vm.sh(stale['remedy']['run'])
        self.guest.start('seabios')
        self.attached_by('a name with a blank and a dash')
        self.install({'windows': ['1', '2', '3']}, delay=0)
        self.hotplugger_install()
        units = self.vm.sh('systemctl list-units --all --plain --no-legend "hotplugger-sync@*.path"')
        self.assertEqual([line.split()[0] for line in units.splitlines()], [f'{UNIT}.path'])
        self.vm.sh('hotplugger uninstall')
        self.assertEqual(self.vm.sh('systemctl list-units --all --plain --no-legend '
                                     '"hotplugger-sync@*"; find /etc/systemd /usr/lib/systemd '
                                     '-name "hotplugger*"'), '')

    def wait_idle(self):
        self.vm.wait_for(lambda: self.vm.exec(
            ['systemctl', 'is-active', UNIT]).out.strip() == 'inactive', 120, f'{UNIT} at rest')

    def pid_1(self):
        """The CPU time of PID 1, in hundredths of seconds."""
        fields = self.vm.sh('cat /proc/1/stat').rpartition(')')[2].split()
        return int(fields[11]) + int(fields[12])


class OtherWaysTest(StartCase):
    """Scripts, libvirt's hook, a host without systemd, a host that slept."""

    def test_a_script(self):
        self.plug_all()
        self.put_script()
        start = ['systemd-run', '--quiet', f'--unit={self.guest.unit}', '--collect', SCRIPT]
        self.vm.sh(start)
        self.wait_running()
        self.attached_by('a script')
        self.kill()
        self.vm.sh(start)
        self.wait_running()
        self.attached_by('the script again after kill -9')

    def test_libvirts_hook_without_systemd(self):
        """As on a host without systemd: what install and the hook see of it is hidden."""
        self.plug_all()
        self.vm.sh('mkdir -p /etc/libvirt /run/vm/windows')
        hidden = ['unshare', '-m', 'sh', '-ec', 'mount -t tmpfs none /run/systemd; exec "$@"', '-']
        said = self.vm.sh([*hidden, 'hotplugger', 'install'])
        self.assertIn(f'write   {HOOK}', said)
        self.assertRegex(said, 'skip .*@.service')
        self.assertNotIn('systemctl', said)
        # A socket that no process listens at yet: the sync has something to wait for.
        self.vm.sh(['python3', '-c', f'import socket; socket.socket(1).bind("{SOCKET}")'])
        status, output, took = json.loads(self.vm.sh([*hidden, 'python3', '-c', LIBVIRT]))
        print(f'    libvirt\'s hook returned after {took:.2f} s')
        self.assertEqual((status, output), (0, ''))
        sync = self.vm.sh(['pgrep', '-f', 'hotplugger sync --wait 30']).split()
        self.assertEqual(len(sync), 1)
        parent = self.vm.sh(f'ps -o ppid= {sync[0]}').strip()
        print(f'    its caller has ended; the parent of the sync is {parent}')
        self.start_in_place()
        self.wait_attached(*PLUGGED)
        self.vm.wait_for(lambda: self.vm.exec(['pgrep', '-f', 'hotplugger sync']).rc != 0, 60)

    def test_the_host_has_slept(self):
        self.plug_all()
        self.hotplugger_install()
        self.guest.start('seabios')
        self.wait_attached(*PLUGGED)
        self.vm.sh('mv /etc/udev/rules.d/99-hotplugger.rules /tmp; udevadm control --reload')
        self.vm.unplug('1')
        self.vm.plug('tablet', '1')
        self.vm.settle()
        self.assertNotIn(PRODUCTS['tablet'], self.guest.attached().values())
        # The kernel goes as far as freezing all programs, and thaws them after five seconds.
        self.vm.sh('echo freezer > /sys/power/pm_test')
        self.vm.sh('systemctl start systemd-suspend.service', timeout=180)
        self.assertIn('PM: suspend entry', self.vm.sh('dmesg'))
        self.wait_attached(('tablet', '1'), *PLUGGED[1:])

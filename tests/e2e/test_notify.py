"""The user unit that shows desktop notifications, in a systemd that runs for a user."""
import product
from test_attach import AttachCase

USER, ID = 'desk', 1000
BUS = f'/run/user/{ID}/bus'


class NotifyTest(AttachCase):
    """What reaches the user's message bus; tests/notify.rs has a notification server."""

    guest_kind = 'seabios'

    def as_user(self, line):
        return self.vm.sh(['setpriv', f'--reuid={ID}', f'--regid={ID}', '--init-groups', 'env',
                           f'XDG_RUNTIME_DIR=/run/user/{ID}', f'HOME=/home/{USER}',
                           f'DBUS_SESSION_BUS_ADDRESS=unix:path={BUS}', 'sh', '-c', line])

    def test_user_unit(self):
        source = f'{product.REPOSITORY}/dist/notify'
        self.install({'windows': ['1']}, delay=0)
        self.vm.put(f'{source}/notify', '/usr/lib/hotplugger/notify', 0o755)
        self.vm.put(f'{source}/hotplugger-notify.service',
                    '/usr/lib/systemd/user/hotplugger-notify.service')
        # What pam_systemd would set.
        self.vm.put(f'[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/{ID}\n'.encode(),
                    '/etc/systemd/system/user@.service.d/runtime-dir.conf')
        self.vm.sh(f'useradd -m -u {ID} -G systemd-journal {USER}; systemctl daemon-reload; '
                   f'systemctl start user@{ID}')
        self.as_user(f'dbus-daemon --session --address=unix:path={BUS} --nopidfile --fork; '
                     'dbus-monitor --session "member=Notify" >~/seen 2>&1 </dev/null &')
        self.as_user('systemctl --user start hotplugger-notify')
        self.vm.wait_for(lambda: self.vm.exec(['pgrep', '-u', USER, 'journalctl']).rc == 0, 60)
        self.vm.plug('kbd', '1')
        self.wait_attached(('kbd', '1'))
        self.wait_seen('USB port 1-1: attached')
        self.vm.unplug('1')
        self.wait_seen('USB port 1-1: detached')
        self.assertEqual(self.as_user('systemctl --user is-active hotplugger-notify').strip(), 'active')

    def wait_seen(self, title):
        self.vm.wait_for(lambda: title in self.vm.sh(f'cat /home/{USER}/seen'), 60, title)

"""The walk of docs/containers.md with docker compose, on a release that has it."""
import re
import textwrap
import unittest

import product
from test_stay import StayCase
from testvm import CONTAINER, RELEASE

IMAGE = 'debian:qemu'
HAS_COMPOSE = RELEASE not in ('bullseye', 'bookworm')


def documented():
    """The line for tmpfiles, the compose file and the config."""
    with open(f'{product.REPOSITORY}/docs/containers.md', encoding='utf-8') as file:
        text = file.read()
    directories = ''.join(re.findall(r'^    (d /run/vm.*\n)', text, re.M))
    compose = re.search(r'A complete `compose.yml`:\n\n```yml\n(.*?)```', text, re.S)[1]
    config = re.search(r'```yaml\n(virtual_machines:.*?)```', text, re.S)[1]
    return directories, compose, config


def adapted(compose):
    """The same without network and KVM, and with the image that is here; QEMU needs no disk."""
    compose, count = re.subn(r' +build:\n( {6}.*\n)+', f'    image: {IMAGE}\n    network_mode: none\n',
                             compose)
    compose, devices = re.subn(r' +devices:\n +- /dev/kvm\n', '', compose)
    compose, qemu = re.subn(r'-accel kvm .*\n.*-drive .*\n', '-accel tcg -m 64 -display none\n', compose)
    assert (count, devices, qemu) == (1, 1, 1), compose
    return compose


@unittest.skipUnless(HAS_COMPOSE, f'{RELEASE} has no `docker compose`')
class DockerTest(StayCase):
    """From nothing to a working port."""

    guest_kind = 'docker' if HAS_COMPOSE else 'none'

    def compose(self, command):
        self.vm.sh(f'cd /root/vm && docker compose {command}', timeout=600)

    def test_compose(self):
        directories, compose, config = documented()
        self.vm.sh(['docker', 'import', CONTAINER, IMAGE], timeout=600)
        self.vm.put(self.binary, '/usr/local/bin/hotplugger', 0o755)
        self.vm.put(config.encode(), '/etc/hotplugger/config.yaml')
        self.vm.put(directories.encode(), '/etc/tmpfiles.d/vm.conf')
        self.vm.sh('systemd-tmpfiles --create vm.conf')
        self.vm.put(adapted(compose).encode(), '/root/vm/compose.yml')
        self.vm.sh('hotplugger install')
        self.vm.plug('kbd', '1')
        self.vm.settle()
        self.vm.sh('hotplugger identify --plugged 0627:0001 --write windows')
        self.compose('up -d')
        self.wait_line('QEMU USB Keyboard (0627:0001): attached to guest port')
        self.assertIn('no problem found', self.vm.sh('hotplugger check'))
        self.vm.unplug('1')
        self.wait_line('unplugged, detached')
        self.vm.plug('mouse', '1')
        self.wait_line('QEMU USB Mouse (0627:0001): attached to guest port')
        self.compose('restart')
        mouse = 'QEMU USB Mouse (0627:0001): attached to guest port'
        self.vm.wait_for(lambda: sum(mouse in line for line in self.lines()) == 2, 120, 'it again')
        self.compose('down')
        self.assertIn('not-running', self.vm.sh('hotplugger status'))

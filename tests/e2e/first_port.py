#!/usr/bin/env python3
"""Runs the commands of the README's first port in the host VM and prints them with their output:
docs/first-port.md.

    python3 tests/e2e/first_port.py --binary target/release/hotplugger > docs/first-port.md
"""
import argparse
import os
import re
import sys
import textwrap

import product
import testvm
from testvm import TestVm

SOCKET = '/run/vm/windows/qmp-sock'


def readme():
    """The config and the commands of the README's first port, with the socket of the guest here."""
    with open(f'{product.REPOSITORY}/README.md', encoding='utf-8') as file:
        section = file.read().split('\n## Your first port\n')[1].split('\n## ')[0]
    section = section.replace('/run/windows.qmp', SOCKET)
    before, block, after = re.fullmatch(r'(.*?) *```yaml\n(.*?) *```\n(.*)', section, re.S).groups()
    commands = re.findall(r'^ {7}(?:sudo )?(\S.*)$', before + after, re.M)
    return textwrap.dedent(block), commands


class Walk:
    """The walk: each step's command and what it printed go into the transcript."""

    def __init__(self, host, binary):
        self.host = host
        self.guest = host.guest()
        self.binary = binary
        self.text = []

    def say(self, *paragraphs):
        """Prose between the steps."""
        for paragraph in paragraphs:
            self.text += [paragraph, '']

    def run(self, command, expected=0):
        """Types a command; its output goes into the transcript."""
        result = self.host.exec(command)
        self.show(command, result.out + result.err)
        if result.rc != expected:
            raise testvm.VmError(f'`{command}` ended with {result.rc}: {result.out}{result.err}')
        return result.out

    def show(self, command, output):
        """Writes down a command and its output."""
        lines = [f'$ {command}', *output.rstrip('\n').splitlines()]
        self.text += ['```console', *lines, '```', '']

    def walk(self):
        """All of it."""
        host = self.host
        # The README has these commands and no others.
        config, (qemu_args, install, identify, check, journal, status) = readme()
        self.say('# Your first port', 'This page shows what you type and what hotplugger prints, from the '
                 'installation to a keyboard in the guest. `tests/e2e/first_port.py` recorded it on an '
                 'emulated host, where the VM `windows` is running.')
        host.put(self.binary, '/usr/local/bin/hotplugger', 0o755)
        self.say('## Install', 'The program is in `/usr/local/bin`. Install the udev rule and all other files:')
        self.run('hotplugger install')
        self.say('## Write the config', 'Write the VM and its socket into the config. It has no port yet:')
        host.put(config.encode(), '/etc/hotplugger/config.yaml')
        self.run('cat /etc/hotplugger/config.yaml')
        self.say('Start QEMU with these arguments:')
        self.run(qemu_args)
        self.say('Run `install` again. It writes the unit that runs `sync` when the VM starts:')
        self.run(install)
        self.say('## Find the port', 'Run `identify`, and plug a device into the port. `--count 1` ends the command '
                 'after the first device, without Enter:')
        self.identify(f'{identify} --count 1')
        self.run('cat /etc/hotplugger/config.yaml')
        self.say('## Check it')
        self.run(check)
        self.say('## Plug in the device', 'Unplug the keyboard and plug it in again:')
        host.unplug('1')
        # It was attached if its `bind` event came after `identify` had written the config.
        host.wait_for(lambda: '1-1:1.0' not in host.drivers() and not self.guest.ids(), 60, 'the keyboard to be gone')
        host.settle()
        host.plug('kbd', '1')
        host.wait_for(lambda: self.guest.attached(), 60, what='the keyboard in the guest')
        host.settle()
        self.run(f'{journal} -o cat')
        host.wait_for(self.guest.lsusb, 60, what='the guest OS')
        self.run(status)
        self.say('The guest lists it:')
        self.show('lsusb   # in the guest', '\n'.join(self.guest.lsusb().values()))
        self.say('Unplug it:')
        host.unplug('1')
        host.wait_for(lambda: not self.guest.ids(), 60, what='the guest without the keyboard')
        host.settle()
        self.run('journalctl -t hotplugger -o cat -n 1')
        self.other_commands()
        return '\n'.join(self.text).rstrip() + '\n'

    def other_commands(self):
        """Runs commands that are not part of the setup."""
        self.host.plug('kbd', '1')
        self.host.wait_for(lambda: self.guest.attached(), 60)
        self.host.settle()
        self.say('## Other commands', 'List the ports of the host (here only the first lines):')
        self.run('hotplugger ports | head -n 6')
        self.say('Show the steps of an event, without doing anything:')
        self.run('hotplugger simulate 1-1 --action remove')
        self.say('Print the lines for a libvirt domain:')
        self.run('hotplugger libvirt-xml windows')
        self.say('Uninstall everything except the config:')
        self.run('hotplugger uninstall')

    def identify(self, command):
        """Runs identify while a keyboard is plugged."""
        host = self.host
        host.sh('systemd-run --quiet --unit=identify -p StandardOutput=file:/run/identify '
                f'-p StandardError=file:/run/identify.err /usr/local/bin/{command}')
        host.wait_for(lambda: 'plug' in host.exec('cat /run/identify /run/identify.err').out.lower())
        host.plug('kbd', '1')
        host.wait_for(lambda: host.exec('systemctl is-active --quiet identify').rc != 0, 60,
                      what='the end of identify')
        self.show(command, host.sh('cat /run/identify.err /run/identify'))
        host.settle()


def transcript(host, binary):
    """The transcript, without what differs from run to run."""
    text = Walk(host, binary).walk()
    return re.sub(r'\b\d+\.\d{3} s\b', lambda found: f'{float(found[0][:-2]):.1f} s', text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--binary', default=product.BINARY)
    args = parser.parse_args()
    testvm.build('linux')
    with TestVm() as host:
        host.up(guest='linux')
        sys.stdout.write(transcript(host, os.path.abspath(args.binary)))


if __name__ == '__main__':
    main()

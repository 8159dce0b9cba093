"""Puts hotplugger, the product under test, into a host VM: program, udev rules, config."""
import os

from testvm import VmError

REPOSITORY = os.path.abspath(f'{os.path.dirname(__file__)}/../..')
BINARY = f'{REPOSITORY}/target/release/hotplugger'
_RULES = f'{REPOSITORY}/rules/99-hotplugger.rules'
# A controller's PCI device and its two buses: full and high speed, super speed.
_CONTROLLERS = {'xhci': ('0000:00:14.0', 1, 2), 'xhci2': ('0000:00:15.0', 3, 4)}


def devpaths(port):
    """The DEVPATHs of a port's two halves; the port is named as for TestVm.plug ('2.1')."""
    controller, _, chain = port.rpartition(':')
    slot, *buses = _CONTROLLERS[controller or 'xhci']
    chains = [chain[:end] for end in range(len(chain) + 1) if chain[end:end + 1] in ('', '.')]
    return [f'/devices/pci0000:00/{slot}/usb{bus}/' + '/'.join(f'{bus}-{c}' for c in chains)
            for bus in buses]


def config(ports, **settings):
    """A config.  ports: {guest: ports, named as for TestVm.plug}; settings: for each guest."""
    lines = ['virtual_machines:']
    for name, its_ports in ports.items():
        lines += [f'  {name}:', f'    socket: /run/vm/{name}/qmp-sock']
        lines += [f'    {key}: {value}' for key, value in settings.items()]
        lines += ['    ports:']
        lines += [f'      - {path}' for port in its_ports for path in devpaths(port)]
    return '\n'.join(lines) + '\n'


def install(vm, binary, config_text):
    """Installs all three; udev knows the rules when it returns."""
    if not os.path.exists(binary):
        raise VmError(f'{binary} is not there: cargo build --release')
    vm.put(binary, '/usr/bin/hotplugger', 0o755)
    vm.put(config_text.encode(), '/etc/hotplugger/config.yaml', 0o644)
    vm.put(_RULES, '/etc/udev/rules.d/99-hotplugger.rules', 0o644)
    vm.sh(['udevadm', 'control', '--reload'])

"""What one call costs: instructions, counted by callgrind, and time against other small programs."""
import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PORTS = (1, 50, 500)
_CONTROLLER = '/devices/pci0000:00/0000:00:14.0'
_EVENT = {
    'DEVPATH': f'{_CONTROLLER}/usb1/1-1', 'SUBSYSTEM': 'usb', 'DEVTYPE': 'usb_device',
    'DEVNAME': '/dev/bus/usb/001/005', 'BUSNUM': '001', 'DEVNUM': '005', 'MAJOR': '189',
    'MINOR': '4', 'PRODUCT': '627/1/0', 'TYPE': '0/0/0', 'SEQNUM': '1234',
    'USEC_INITIALIZED': '12345678', 'ID_BUS': 'usb', 'ID_PATH': 'pci-0000:00:14.0-usb-0:1',
    'ID_PATH_TAG': 'pci-0000_00_14_0-usb-0_1', 'ID_MODEL': 'QEMU_USB_Keyboard',
    'ID_VENDOR': 'QEMU', 'ID_SERIAL': 'QEMU_QEMU_USB_Keyboard_68284', 'TAGS': ':seat:',
}


def _host(folder, ports, match):
    """A host below that folder: one device in port 1-1, and so many ports in the config, of which
    the device's is the first if match."""
    lines = ['virtual_machines:']
    for number in range(ports):
        if number % 10 == 0:
            lines += [f'  vm{number // 10}:', f'    socket: /run/vm{number // 10}.qmp',
                      '    delay: 0', '    ports:']
        name = '1' if match and number == 0 else f'{number // 100 + 2}.{number // 10 % 10 + 1}.{number % 10 + 1}'
        lines.append(f'      - pci-0000:00:14.0/usb2:{name}')
    files = {'etc/hotplugger/config.yaml': '\n'.join(lines) + '\n',
             'proc/sys/kernel/random/boot_id': 'boot\n', 'sys/kernel/uevent_seqnum': '1234\n'}
    for bus, other, speed in ((1, 2, '480'), (2, 1, '5000')):
        hub = f'sys{_CONTROLLER}/usb{bus}'
        files[f'{hub}/speed'] = f'{speed}\n'
        port = f'{folder}/{hub}/{bus}-0:1.0/usb{bus}-port1'
        os.makedirs(port)
        os.symlink(f'../../../usb{other}/{other}-0:1.0/usb{other}-port1', f'{port}/peer')
    device = f'sys{_CONTROLLER}/usb1/1-1'
    for name, value in (('busnum', 1), ('devnum', 5), ('bDeviceClass', '00'), ('authorized', 1),
                        ('idVendor', '0627'), ('idProduct', '0001'), ('speed', 480)):
        files[f'{device}/{name}'] = f'{value}\n'
    os.makedirs(f'{folder}/sys/bus/pci', exist_ok=True)
    os.symlink(f'{folder}/sys/bus/pci', f'{folder}/sys{_CONTROLLER}/subsystem')
    files['dev/bus/usb/001/005'] = ''
    for name, text in files.items():
        path = f'{folder}/{name}'
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(text)
    os.makedirs(f'{folder}/tmp')
    os.makedirs(f'{folder}/run', exist_ok=True)
    os.chmod(f'{folder}/tmp', 0o1777)


@contextlib.contextmanager
def host(ports, match=False):
    """A host below a folder of its own."""
    folder = tempfile.mkdtemp(prefix='bench.', dir='/root' if os.geteuid() == 0 else None)
    try:
        _host(folder, ports, match)
        yield folder
    finally:
        shutil.rmtree(folder)


def _listens(path):
    """Whether a QEMU does.  Its socket is there before."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


@contextlib.contextmanager
def qemu(path):
    """A QEMU without an operating system that listens there."""
    process = subprocess.Popen(['qemu-system-x86_64', '-nodefaults', '-display', 'none', '-S',
                                '-accel', 'tcg', '-m', '16', '-device', 'qemu-xhci,id=xhci0',
                                '-qmp', f'unix:{path},server=on,wait=off'],
                               stderr=subprocess.DEVNULL)
    try:
        while not _listens(path):
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def event(action, folder):
    """The environment of that event of the device, on that host."""
    return {**_EVENT, 'ACTION': action, 'HOTPLUGGER_ROOT': folder}


def count(command, action='add', folder='/'):
    """The instructions that a command executes on that event."""
    environment = {**event(action, folder), 'PATH': os.environ['PATH']}
    ended = subprocess.run(['valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null',
                            *command], env=environment, capture_output=True, text=True)
    found = re.search(r'Collected : (\d+)', ended.stderr)
    if not found:
        sys.exit(f'{command}: {ended.stderr}')
    return int(found[1])


def seconds(commands, rounds):
    """The median time from start to end of each of these (command, folder), one after the other in
    each round, so that all have the same share of what else the machine does."""
    times = [[] for _ in commands]
    for _ in range(rounds):
        for (command, folder), its_times in zip(commands, times):
            environment = event('bind', folder)
            begin = time.perf_counter()
            child = os.posix_spawn(command[0], command, environment, file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0)])
            os.waitpid(child, 0)
            its_times.append(time.perf_counter() - begin)
    return [statistics.median(its_times) for its_times in times]


def _add_devices(folder, count):
    """Gives each root hub so many ports more, with a device in each."""
    os.makedirs(f'{folder}/sys/bus/usb/devices')
    for bus in (1, 2):
        hub = f'{folder}/sys{_CONTROLLER}/usb{bus}'
        os.symlink(hub, f'{folder}/sys/bus/usb/devices/usb{bus}')
        for port in range(2, count + 2):
            os.makedirs(f'{hub}/{bus}-0:1.0/usb{bus}-port{port}')
            shutil.copytree(f'{folder}/sys{_CONTROLLER}/usb1/1-1', f'{hub}/{bus}-{port}')


def completion(binary, rounds=300):
    """The lines of a Markdown table: how long it takes to list candidates on a host with 29 devices and
    500 ports in its config."""
    lines = {'commands': [''], 'ports': ['move', ''], 'VMs': ['move', '--vm', '']}
    with host(500, match=True) as folder:
        _add_devices(folder, 14)
        times = seconds([([binary, 'complete', '--', *line], folder) for line in lines.values()],
                        rounds)
    return [f'| {what} | {time * 1e3:.2f} |' for what, time in zip(lines, times)]


def table(binary, rounds=300):
    """The lines of a Markdown table, and those of the times."""
    true, python = ['/bin/true'], [sys.executable, '-c', 'pass']
    rows = []

    def row(what, action, command, folder='/'):
        own, base = count(command, action, folder), count(true, action, folder)
        rows.append(f'| {what} | {own:,} | {own / base:.2f} |')

    row('`/bin/true`', 'bind', true)
    row('`python3 -c pass`', 'bind', python)
    for ports in PORTS:
        with host(ports) as folder:
            for action in ('add', 'bind', 'remove'):
                row(f'`{action}`, unconfigured port, {ports} configured', action, [binary],
                    folder)
    with host(1, match=True) as folder:
        row('`bind` of a configured port, the VM does not run', 'bind', [binary], folder)
        with qemu(f'{folder}/run/vm0.qmp'):
            row('`bind` of a configured port, the whole session with a QEMU (its guest paused)', 'bind', [binary], folder)
    with host(1) as one, host(500) as many:
        true_time, python_time, one_time, many_time = seconds(
            [(true, '/'), (python, '/'), ([binary], one), ([binary], many)], rounds)
    times = [f'| `/bin/true` | {true_time * 1e3:.2f} | 1 |',
             f'| `python3 -c pass` | {python_time * 1e3:.2f} | {python_time / true_time:.2f} |',
             f'| unconfigured port, 1 configured | {one_time * 1e3:.2f} | {one_time / true_time:.2f} |',
             f'| unconfigured port, 500 configured | {many_time * 1e3:.2f} | {many_time / true_time:.2f} |']
    return rows, times

#!/usr/bin/env python3
"""Runs the tests that need a real QEMU with each QEMU that Debian has, and prints a table.

The test executables are linked statically and run in the root file system of each release, in a
chroot: this machine's packages do not matter. A release that the archive no longer has is
skipped, and the table says so.
"""
import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_TOP = os.path.dirname(os.path.dirname(_HERE))
_TARGET = 'x86_64-unknown-linux-gnu'
# The releases, oldest first. Backports and not sid, whose packages cannot always be installed.
SUITES = ('bullseye', 'bookworm', 'trixie', 'trixie-backports')
TESTS = ('real_qemu', 'scenarios', 'handover', 'listings', 'upgrade')
# Which other package's modules take the place of a QEMU's own in the test of an upgrade. Both are of
# one Debian release, as in a real upgrade: modules that need a newer C library fail otherwise. The
# security archive has another build of bookworm's QEMU. 5.2 has usb-host built in.
_UPGRADES = {'bookworm': 'bookworm-security', 'trixie': 'trixie-backports'}
_MODULES = 'usr/lib/x86_64-linux-gnu/qemu'
_GONE = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--report', metavar='FILE', help='append the table to this file')
    parser.add_argument('--build', action='store_true', help='only build the root file systems')
    parser.add_argument('--root', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.root:
        return print_root()
    from testvm import VmError, packages
    try:
        packages.require(install=True)
    except VmError as error:
        sys.exit(f'matrix: {error}')
    wanted = dict.fromkeys([*SUITES, *_UPGRADES.values()])
    if args.build:
        list(map(root_of, wanted))
        return 0
    # One root after the other, while the tests are compiled.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        roots = pool.map(root_of, wanted)
        programs = build()
        roots = dict(zip(wanted, roots))
    rows, failed = [], False
    for suite in SUITES:
        root = roots[suite]
        if root is None:
            rows.append([suite, 'skipped: the archive no longer has it', *['-'] * len(TESTS)])
            continue
        version = re.search(r'version (\S+)', chroot(root, ['qemu-system-x86_64', '--version']).stdout)
        newer = roots.get(_UPGRADES.get(suite))
        if newer and qemu_package(newer) == qemu_package(root):
            newer = None
        results = [run_test(suite, root, newer, name, programs[name]) for name in TESTS]
        failed |= any('failed' in result for result in results)
        rows.append([suite, version[1] if version else '?', *results])
    table = '\n'.join(layout([['release', 'QEMU', *TESTS], *rows]))
    print(table, flush=True)
    if args.report:
        with open(args.report, 'a') as file:
            file.write(f'matrix of QEMU versions:\n{table}\n')
    return 1 if failed else 0


def qemu_package(root):
    """The version of the package of QEMU in that root."""
    return chroot(root, ['dpkg-query', '-W', '-f', '${Version}', 'qemu-system-x86']).stdout


def layout(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def build():
    """Compiles the tests; {name: path of the executable}."""
    command = ['cargo', 'test', '--no-run', '--locked', '--target', _TARGET,
               '--target-dir', f'{_TOP}/target/static', '--message-format', 'json']
    for name in TESTS:
        command += ['--test', name]
    flags = f'{os.environ.get("RUSTFLAGS", "")} -C target-feature=+crt-static'
    done = subprocess.run(command, cwd=_TOP, env={**os.environ, 'RUSTFLAGS': flags},
                          stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit('matrix: the tests do not compile')
    programs = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get('executable') and message['target']['name'] in TESTS:
            programs[message['target']['name']] = message['executable']
    return programs


def root_of(suite):
    """The directory with that release's root; None if the archive no longer has the release."""
    done = subprocess.run([sys.executable, __file__, '--root'], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, 'HOTPLUGGER_TEST_SUITE': suite})
    if done.returncode == _GONE:
        return None
    if done.returncode != 0:
        sys.exit(f'matrix: no root file system of {suite}')
    return done.stdout.splitlines()[-1]


def print_root():
    """In a process of its own, because the release is a setting of the test VM's."""
    from testvm import VmError, cache, rootfs
    from testvm.command import run
    try:
        if not cache.read_key('root-qemu') and not rootfs.is_in_archive():
            return _GONE
        tarball, key = rootfs.tarball('qemu')

        def unpack(folder):
            os.mkdir(f'{folder}/root')
            run('tar', '-xf', tarball, '-C', f'{folder}/root', '--exclude=./dev/*')
        print(cache.entry('unpacked-qemu', key, unpack) + '/root')
    except VmError as error:
        sys.exit(f'matrix: {error}')
    return 0


# $1: the root, $2: the checkout, $3: another release's modules or nothing; the rest is run there.
_CHROOT = '''set -e
root=$1 top=$2 modules=$3
shift 3
for name in proc sys dev; do mount --rbind /$name $root/$name; done
for name in tmp run; do mount -t tmpfs -o mode=1777 tmpfs $root/$name; done
chmod 755 $root/run
mkdir -p $root/$top
mount --bind $top $root/$top
if [ -n "$modules" ]; then mkdir -p $root/run/newer; mount --bind $modules $root/run/newer; fi
exec chroot $root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TOP=$top \\
    HOTPLUGGER_NEWER_MODULES=${modules:+/run/newer} /bin/sh -c 'cd $TOP && exec "$@"' sh "$@"
'''


def chroot(root, command, modules=''):
    return subprocess.run(['unshare', '--mount', 'sh', '-c', _CHROOT, 'sh', root, _TOP, modules, *command],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def run_test(suite, root, newer, name, program):
    modules = f'{newer}/{_MODULES}' if name == 'upgrade' and newer else ''
    done = chroot(root, [program, '--show-output'], modules)
    result = re.findall(r'test result: \w+\. (\d+) passed; (\d+) failed', done.stdout)
    passed, failures = result[-1] if result else ('0', '?')
    skipped = set(re.findall(r'SKIPPED: (.*)', done.stdout))
    print(f'{suite} {name}: {passed} passed, {failures} failed'
          + ''.join(f'; skipped: {why}' for why in skipped), flush=True)
    if done.returncode != 0 or not result:
        print('    ' + done.stdout.strip().replace('\n', '\n    '), flush=True)
        return f'{failures} failed'
    return 'skipped' if skipped else f'{passed} passed'


if __name__ == '__main__':
    sys.exit(main())

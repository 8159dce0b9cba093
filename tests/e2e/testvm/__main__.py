"""The test VM on the command line, for a person who wants to look: python3 -m testvm."""
import argparse
import signal
import sys

from . import VmError, snapshot
from .ports import KINDS
from .testvm import TestVm


def build(args):
    snapshot.build(install=args.install)


def up(args):
    TestVm(args.name, keep=True).up(guest=args.guest)


def down(args):
    TestVm(args.name).down()


def sh(args):
    result = TestVm(args.name).exec(args.line, timeout=3600)
    sys.stdout.write(result.out)
    sys.stderr.write(result.err)
    return result.rc


def put(args):
    TestVm(args.name).put(args.source, args.path)


def plug(args):
    print(TestVm(args.name).plug(args.kind, args.port))


def unplug(args):
    TestVm(args.name).unplug(args.port)


def usb(args):
    for device in TestVm(args.name).guest(args.vm).usb():
        state = 'attached' if device.attached else 'not attached'
        print(f'{device.bus} port {device.port}: {device.id or "(no id)"}, {device.name}, '
              f'{device.speed} Mb/s, {state}')


def journal(args):
    sys.stdout.write(TestVm(args.name).journal(*args.arguments))


def _parser():
    parser = argparse.ArgumentParser(prog='python3 -m testvm', description=__doc__)
    parser.add_argument('-n', '--name', default='default', help='which test VM (several may be up)')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def command(function, text):
        sub = commands.add_parser(function.__name__, help=text, description=text)
        sub.set_defaults(function=function)
        return sub
    command(build, 'build the image and the snapshots').add_argument(
        '--install', action='store_true', help='apt-get install what is missing on this machine')
    command(up, 'start the host VM').add_argument(
        '--guest', default='linux', choices=snapshot.KINDS)
    command(down, 'end the host VM')
    command(sh, 'run a line of bash in the host VM').add_argument('line')
    sub = command(put, 'copy a file into the host VM')
    sub.add_argument('source')
    sub.add_argument('path')
    sub = command(plug, 'plug a device into a port')
    sub.add_argument('kind', help=' '.join(KINDS))
    sub.add_argument('port', help='1..12, xhci2:1..xhci2:8, 2.1 behind a hub')
    command(unplug, 'pull what is in a port').add_argument('port')
    command(usb, "the guest's USB devices").add_argument('--vm', default='windows')
    command(journal, "the host VM's journal; all arguments are journalctl's")
    return parser


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)     # cleans up, as on Ctrl-C
    parser = _parser()
    args, args.arguments = parser.parse_known_args()
    if args.arguments and args.function is not journal:
        parser.error(f'unrecognized arguments: {" ".join(args.arguments)}')
    try:
        sys.exit(args.function(args))
    except VmError as error:
        sys.exit(f'testvm: {error}')
    except KeyboardInterrupt:
        sys.exit(130)

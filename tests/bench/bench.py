#!/usr/bin/env python3
"""Measures hotplugger and writes docs/developers/performance.md and its plot."""
import argparse
import os
import platform
import statistics
import subprocess
import sys

import instructions
import latency
import plot

_DOCS = os.path.abspath(f'{os.path.dirname(__file__)}/../../docs/developers')


def machine():
    """What it was measured on."""
    with open('/proc/cpuinfo') as file:
        model = next((line.partition(':')[2].strip() for line in file
                      if line.startswith('model name')), 'a processor without a name')
    qemu = subprocess.run(['qemu-system-x86_64', '--version'], capture_output=True, text=True)
    return (f'{os.cpu_count()} processors ({model}), Linux {platform.release()}, '
            f'{qemu.stdout.splitlines()[0]}')


def spread(times):
    """A median with its extremes."""
    return f'{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})'


def singles(measured):
    """The table of one device after the other; ratios are to the reference before."""
    lines, reference = [], {}
    for way in latency.WAYS:
        cells = []
        for kind, _ in latency.KINDS:
            times = [plug.opened[0] for plug in measured[way.name, kind]]
            median = statistics.median(times)
            if way.reference:
                reference[kind] = median
            ratio = median / reference[kind]
            hotplugger = way.settings is not None and way.settings['delay'] == 0
            cells.append(spread(times) + (f', {ratio:.2f} ×' if hotplugger else ''))
        lines.append(f'| {way.name} | ' + ' | '.join(cells) + ' |')
    return lines


def firsts(first):
    """The table of the first plug of each kind."""
    return [f'| {way.name} | ' + ' | '.join(f'{first[way.name, kind].opened[0]:.2f}'
                                            for kind, _ in latency.KINDS) + ' |'
            for way in latency.WAYS]


def starts(measured):
    """When udevd starts what RUN names."""
    return [f'| {way.name} | ' + ' | '.join(
        spread([plug.started[0] for plug in measured[way.name, kind]])
        for kind, _ in latency.KINDS) + ' |' for way in latency.WAYS if way.reference]


def crowds(measured):
    """The table of several at once: time to the last, of that the part after the kernel was done,
    and how long udevd was busy."""
    lines = []
    for way in latency.CROWD_WAYS:
        cells = []
        for count in latency.COUNTS:
            plugs = measured.get((way.name, count))
            cells.append(' / '.join(
                f'{statistics.median(times):.2f}'
                for times in ([plug.opened[-1] for plug in plugs], [plug.behind for plug in plugs],
                              [plug.queue for plug in plugs])) if plugs else 'did not end')
        lines.append(f'| {way.name} | ' + ' | '.join(cells) + ' |')
    return lines


def round_trip(measured):
    """The median of the reference's device_add, alone."""
    times = [time for (name, count), plugs in measured.items() if count == 1
             for plug in plugs for time in plug.round_trips]
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--binary', default=latency.product.BINARY)
    parser.add_argument('--plugs', type=int, default=10, help='of each kind in each way')
    parser.add_argument('--crowds', type=int, default=3, help='of each number at once')
    parser.add_argument('--no-vm', action='store_true', help='print what calls cost, no more')
    args = parser.parse_args()
    binary = os.path.abspath(args.binary)

    def say(line):
        print(line, flush=True)

    calls, times = instructions.table(binary)
    tabs = instructions.completion(binary)
    say('\n'.join([*calls, *times, *tabs]))
    if args.no_vm:
        return
    latency.prepare()
    one, first = latency.single(binary, args.plugs, say)
    many = latency.together(binary, args.crowds, say)
    with open(f'{os.path.dirname(os.path.abspath(__file__))}/performance.md.in') as file:
        text = file.read()
    parts = {'MACHINE': machine(), 'CALLS': '\n'.join(calls), 'TIMES': '\n'.join(times), 'TABS': '\n'.join(tabs),
             'PLUGS': str(args.plugs), 'CROWDS': str(args.crowds),
             'SIZE': f'{os.path.getsize(binary) / 1e6:.2f}',
             'SINGLES': '\n'.join(singles(one)), 'FIRST': '\n'.join(firsts(first)), 'STARTS': '\n'.join(starts(one)),
             'MANY': '\n'.join(crowds(many)), 'ROUND_TRIP': f'{round_trip(many):.3f}'}
    for name, value in parts.items():
        text = text.replace(f'@{name}@', value)
    with open(f'{_DOCS}/performance.md', 'w') as file:
        file.write(text)
    curves = {way.name: [(count, statistics.median([plug.opened[-1] for plug in many[way.name, count]]))
                         for count in latency.COUNTS if (way.name, count) in many]
              for way in latency.CROWD_WAYS}
    with open(f'{_DOCS}/performance.svg', 'w') as file:
        file.write(plot.svg('From the kernel to the last device in the guest',
                            {name: curve for name, curve in curves.items() if curve}))


if __name__ == '__main__':
    try:
        sys.exit(main())
    except latency.VmError as error:
        sys.exit(f'bench: {error}')

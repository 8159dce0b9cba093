#!/usr/bin/env python3
"""Runs the fault campaign: random sequences on a host, and what must hold after each of them.

A sequence that breaks something is shortened, and the shortest that still does is printed."""
import argparse
import collections
import os
import random
import sys
import time

import product
import testvm
from campaign import SEQUENCE, Broken, Campaign, sequence

# Sequences on one host: then a fresh one, since its QEMU keeps what is behind pulled devices.
_PER_HOST = 15


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--binary', default=product.BINARY, help='the hotplugger to test')
    parser.add_argument('--seed', type=int, default=None, help='of the dice; printed')
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--minutes', type=float, default=60, help='no sequence begins later')
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f'campaign: seed {seed}, {args.steps} steps', flush=True)
    testvm.build('none', 'seabios')
    ok = run(os.path.abspath(args.binary), seed, args.steps, args.minutes)
    return 0 if ok else 1


def run(binary, seed, steps, minutes):
    """Plays that many steps, or as many as the minutes allow; whether all held."""
    started = time.monotonic()
    campaign = Campaign(binary)
    played = 0
    try:
        for number in range(-(-steps // SEQUENCE)):
            if time.monotonic() - started > minutes * 60:
                print(f'campaign: {minutes} minutes are over')
                break
            if number % _PER_HOST == 0:
                campaign.fresh()
            # Each sequence has dice of its own, so that one can be replayed alone.
            steps_of_it = sequence(random.Random(f'{seed} {number}'))
            if why := broken(campaign, steps_of_it):
                print(f'campaign: sequence {number} of seed {seed}: {why}')
                print(campaign.vm.died() or campaign.evidence(), flush=True)
                shortest(campaign, steps_of_it)
                return False
            played += len(steps_of_it)
            if number % 10 == 9:
                print(f'campaign: {played} steps, {time.monotonic() - started:.0f} s', flush=True)
    finally:
        campaign.close()
    counts = collections.Counter(campaign.counts)
    print(f'campaign: seed {seed}: {played} steps in {time.monotonic() - started:.0f} s, nothing '
          'broken: ' + ', '.join(f'{count} {name}' for name, count in counts.most_common()))
    return True


def broken(campaign, steps):
    """Plays a sequence; what does not hold then, '' if all does.  If the host itself dies (Host.died)
    that is no verdict: it is played again on a fresh one, once."""
    for again in (False, True):
        try:
            campaign.play(steps)
            return ''
        except (Broken, testvm.VmError) as error:
            died = campaign.vm.died()
            if again or not died:
                return str(error)
            print(f'campaign: {error}; played again on a fresh host: {died}', flush=True)
            campaign.fresh()


def shortest(campaign, steps):
    """Leaves out what is not needed to break it, each try on a fresh host, and prints the rest."""
    def breaks(some):
        campaign.fresh()
        return broken(campaign, some)

    why, size = breaks(steps), len(steps) // 2
    if not why:
        print('campaign: it did not happen again; the whole sequence:')
    while why and size:
        at = 0
        while at < len(steps):
            less = steps[:at] + steps[at + size:]
            told = breaks(less)
            if told:
                steps, why = less, told
            else:
                at += size
        size //= 2
    print(f'campaign: {why}')
    for step in steps:
        print(f'    {step}')


if __name__ == '__main__':
    try:
        sys.exit(main())
    except testvm.VmError as error:
        sys.exit(f'campaign: {error}')
    except KeyboardInterrupt:
        sys.exit(130)

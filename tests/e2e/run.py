#!/usr/bin/env python3
"""Runs the end-to-end tests: each test_*.py beside this file.  See README.md."""
import argparse
import os
import signal
import sys
import unittest

import product
import testvm
from case import Case
from report import Report

# What is also run on the newest release (--core).
_CORE = ['*test_attach.KindsTest.test_each_kind_with_a_delay_of_0', '*test_attach.KindsTest.test_the_guest*',
         '*test_original_rules.*', '*test_libvirt.MonitorTest.*', '*test_libvirt.DomainTest.test_plug*',
         '*test_libvirt.HookTest.test_a_domain', '*test_sync.SyncTest.test_events*', '*test_settle.*',
         '*test_first_port.*', '*test_docker.*']
_HERE = os.path.dirname(os.path.abspath(__file__))


def _tests(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _tests(item)
        else:
            yield item


def report_line(path, text):
    """Adds a line to what `make test` prints at its end."""
    if path:
        with open(path, 'a') as file:
            file.write(f'end to end on Debian {testvm.SUITE}: {text}\n')
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--binary', default=product.BINARY, help='the hotplugger to test')
    parser.add_argument('-k', metavar='PATTERN', help='only the tests whose name contains it')
    parser.add_argument('--core', action='store_true',
                        help='only the tests that run on the newest release too')
    parser.add_argument('--report', metavar='FILE', help='append a line about the run to this file')
    parser.add_argument('--list', action='store_true', help='print the names of the tests')
    parser.add_argument('--build', action='store_true', help='only build the VMs that the tests need')
    parser.add_argument('-v', action='store_true', help='print the journal of passed tests too')
    parser.add_argument('--install', action='store_true',
                        help='apt-get install what the test VM needs and this machine has not')
    args = parser.parse_args()

    loader = unittest.TestLoader()
    if args.k:
        loader.testNamePatterns = [f'*{args.k}*']
    elif args.core:
        loader.testNamePatterns = _CORE
    suite = loader.discover(_HERE)
    tests = list(_tests(suite))
    if args.list:
        print('\n'.join(test.id() for test in tests))
        return 0
    Case.binary = os.path.abspath(args.binary)
    if not testvm.is_available():
        print(f'e2e: skipped, the archive no longer has Debian {testvm.SUITE}')
        return report_line(args.report, 'skipped, the archive no longer has it')
    # before the first test, not within it
    testvm.build(*sorted({test.guest_kind for test in tests if isinstance(test, Case)}),
              install=args.install)
    if args.build:
        return 0
    report = Report(args.v)
    suite.run(report)
    status = report.sum_up()
    report_line(args.report, report.line())
    return status


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)     # cleans up, as on Ctrl-C
    try:
        sys.exit(main())
    except testvm.VmError as error:
        sys.exit(f'e2e: {error}')
    except KeyboardInterrupt:
        sys.exit(130)

#!/usr/bin/env python3
"""Draws the plug, the attach and the unplug that the demo printed as a terminal window, in SVG.

    python3 tests/e2e/picture.py [FILE] > docs/plug.svg
"""
import argparse
import re
import sys
import textwrap
from html import escape

from demo import COLOURS

_HEX = {'31': '#ff6b6b', '32': '#7ee787', '33': '#e3b341', '35': '#d2a8ff', '36': '#76e3ea'}
_FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_COLUMNS, _WIDTH, _HEIGHT = 112, 8.4, 20        # the longest row; a character, in pixels
_PAD, _BAR = 16, 32
_SGR = re.compile(r'\x1b\[[0-9;]*m')
# A line with a coloured word: a moment of the timeline, or the verdict.
_COLOURED = re.compile(rf'( +[0-9.]+ s  |)({"|".join(COLOURS)})\b(.*)')
# The kernel's events beside those that matter most, and the guest's second line about the device.
_LEFT_OUT = re.compile(r'  kernel .*(usb_interface|change|unbind)| Product: ')


def crop(text):
    """The lines from the plug on, without some of the timeline's."""
    lines = _SGR.sub('', text).replace('\r', '').rstrip().split('\n')
    start = next((at for at, line in enumerate(lines) if line.startswith('A keyboard is plugged')), None)
    if start is None:
        sys.exit('picture: this is not the output of the demo')
    return [line for line in lines[start:] if line and not _LEFT_OUT.search(line)]


def rows(line):
    """The rows of a line: lists of texts with their column and style. A long text is wrapped."""
    row, text = [], line
    if found := _COLOURED.fullmatch(line):
        time, word, text = found.groups()
        bold, _, colour = COLOURS[word].rpartition(';')
        row = [(len(time) - len(time.lstrip()), time.strip()),
               (len(time), word, f' fill="{_HEX[colour]}"' + (' font-weight="bold"' if bold else ''))]
    column = len(line) - len(text.lstrip())
    for part in textwrap.wrap(text.strip(), _COLUMNS - column):
        yield [*filter(lambda one: one[1], row), (column, part)]
        row = []


def svg(lines):
    """The picture of these lines."""
    drawn = [row for line in lines for row in rows(line)]
    width = 2 * _PAD + max(column + len(text) for row in drawn for column, text, *_ in row) * _WIDTH
    height = _BAR + _PAD + len(drawn) * _HEIGHT
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" '
             f'font-family="{_FONT}" font-size="14">',
             '<title>A plug and an unplug, as make demo prints them</title>',
             f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#161b22"/>']
    parts += [f'<circle cx="{_PAD + 4 + 20 * at}" cy="18" r="6" fill="{colour}"/>'
              for at, colour in enumerate(('#ff5f56', '#ffbd2e', '#27c93f'))]
    parts.append('<g fill="#c9d1d9">')
    for number, row in enumerate(drawn, 1):
        # The width of a character differs between fonts, so each text has its place and its length.
        parts += [f'<text x="{_PAD + column * _WIDTH:.0f}" y="{_BAR + number * _HEIGHT}" '
                  f'textLength="{len(text) * _WIDTH:.0f}"{"".join(style)}>{escape(text, quote=False)}</text>'
                  for column, text, *style in row]
    return '\n'.join([*parts, '</g>', '</svg>']) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', nargs='?', type=argparse.FileType(encoding='utf-8'), default=sys.stdin,
                        help='the output of the demo [default: standard input]')
    sys.stdout.write(svg(crop(parser.parse_args().file.read())))


if __name__ == '__main__':
    main()

"""A plot of latency against the number of devices, as SVG."""

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 420, 60, 50, 20
_PLOT = 420             # width of the plot itself; the legend is beside it
_COLOURS = ('#888888', '#0b6e4f', '#bbbbbb', '#c1440e', '#1d4e89', '#7a4e9f')


def svg(title, curves):
    """curves: {name: [(count, seconds)]}, each sorted by count."""
    points = [point for curve in curves.values() for point in curve]
    most, longest = max(x for x, _ in points), max(y for _, y in points) * 1.05

    def place(count, seconds):
        return (_LEFT + _PLOT * count / most,
                _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * seconds / longest)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
             'font-family="sans-serif" font-size="12" role="img">',
             f'<title>{title}</title>',
             f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>']
    step = _step(longest)
    for tick in range(int(longest / step) + 1):
        _, y = place(0, tick * step)
        parts += [f'<path d="M{_LEFT} {y:.1f}h{_PLOT}" stroke="#dddddd"/>',
                  f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g} s</text>']
    for count in sorted({x for x, _ in points}):
        x, y = place(count, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{_LEFT + _PLOT / 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
                 'devices plugged at once</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = ' '.join('{:.1f},{:.1f}'.format(*place(*point)) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*place(*point), colour)
                  for point in curve]
        y = _TOP + 20 + 20 * number
        parts += [f'<rect x="{_LEFT + _PLOT + 16}" y="{y - 6}" width="12" height="3" '
                  f'fill="{colour}"/>',
                  f'<text x="{_LEFT + _PLOT + 34}" y="{y}">{name.replace("`", "")}</text>']
    return '\n'.join([*parts, '</svg>']) + '\n'


def _step(longest):
    """A round distance between lines, so that there are five to ten of them."""
    step = 0.1
    while True:
        for factor in (1, 2, 5):
            if longest / (step * factor) <= 10:
                return step * factor
        step *= 10

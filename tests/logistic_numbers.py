"""Discretized logistics in many digits, straight from the definition, and numbers it gives."""

import mpmath

DIGITS = 600  # a slope of 1e-221 is the difference of two values at a distance of 1e-250


def slopes_of(function, point):
    """Derivatives by each coordinate, from above where there is a kink."""
    with mpmath.workdps(DIGITS):
        step = mpmath.mpf(10) ** -250
        here = function(point)
        for i, x in enumerate(point):
            moved = [*point[:i], mpmath.mpf(x) + step, *point[i + 1 :]]
            yield (function(moved) - here) / step


def exact_single(grid, n, k, mean, log_scale, floor):
    """log P of bin k: the mass of the logistic between its edges, of which the outer are open."""
    with mpmath.workdps(DIGITS):
        return mpmath.log(_mass(grid, n, k, mean, log_scale, floor))


def exact_mixture(bins, params, n=256, floor=-7):
    """log P of one pixel of 1 channel, or of 3 coupled ones, on the centred grid.

    `params`: the logits of all components, then for each channel their means, log-scales and, with
    3 channels, coefficients.
    """
    with mpmath.workdps(DIGITS):
        kinds = 3 if len(bins) == 3 else 2
        count = len(params) // (1 + kinds * len(bins))
        rows = [params[i : i + count] for i in range(0, len(params), count)]
        logits, blocks = rows[0], [rows[i : i + kinds] for i in range(1, len(rows), kinds)]
        x = [mpmath.mpf(2 * k - (n - 1)) / (n - 1) for k in bins]
        total = weights = mpmath.mpf(0)
        for i, logit in enumerate(logits):
            means = [mpmath.mpf(block[0][i]) for block in blocks]
            if kinds == 3:
                to_green, red_to_blue, green_to_blue = (mpmath.tanh(b[2][i]) for b in blocks)
                means[1] += to_green * x[0]
                means[2] += red_to_blue * x[0] + green_to_blue * x[1]
            weight = mpmath.exp(logit)
            weights += weight
            for k, mean, block in zip(bins, means, blocks, strict=True):
                weight *= _mass("centred", n, k, mean, block[1][i], floor)
            total += weight
        return mpmath.log(total / weights)


def _mass(grid, n, k, mean, log_scale, floor):
    start, width = {
        "centred": (-mpmath.mpf(n) / (n - 1), mpmath.mpf(2) / (n - 1)),
        "symmetric": (mpmath.mpf(-1), mpmath.mpf(2) / n),
        "unit": (mpmath.mpf(0), mpmath.mpf(1) / n),
    }[grid]
    scale = mpmath.exp(log_scale if floor is None else max(log_scale, floor))
    low = -mpmath.inf if k == 0 else (start + k * width - mean) / scale
    high = mpmath.inf if k == n - 1 else (start + (k + 1) * width - mean) / scale
    if low + high > 0:  # the other tail, in which the difference loses no digits
        low, high = -high, -low
    return _sigmoid(high) - _sigmoid(low)


def _sigmoid(x):
    return mpmath.exp(x) / (1 + mpmath.exp(x)) if x < 0 else 1 / (1 + mpmath.exp(-x))


# (grid, n, bin, mean, log-scale, smallest log-scale) and log P with its two derivatives
SINGLE = [
    (("centred", 256, 128, 0, -3, -7), (-3.236475807287, 0.7894049799189, -0.9958758037111)),
    (("centred", 256, 127, 0, -3, -7), (-3.236475807287, -0.7894049799189, -0.9958758037111)),
    (("centred", 256, 64, -0.5, -1, -7), (-5.234427297082, 7.243949705995e-3, -0.9999668578182)),
    (("centred", 256, 0, -0.5, -2, -7), (-3.690819472266, -7.204687721631, 3.574090183476)),
    (("centred", 256, 255, 0.875, -4, -7), (-6.612003402621, 54.52476266121, 6.60177273398)),
    (("centred", 256, 0, 0.5, -5, -7), (-222.0377262652, -148.4131591026, 222.0377262652)),
    (("centred", 256, 200, -0.75, -5, -7), (-195.4939497346, 148.4131591026, 194.5912231667)),
    (
        ("centred", 256, 37, -0.703125, -6.75, -7),
        (-2.446954121326, -779.9343405696, 2.141502865155),
    ),
    (("centred", 256, 37, -0.703125, -9, -7), (-3.071468639419, -1045.781279785, 0.0)),
    (("centred", 256, 37, -0.703125, -12, None), (-448.7724028098, -162754.791419, 448.7724028098)),
    (
        ("centred", 256, 254, 0.9921875, -6, -7),
        (-0.4170594083925, -1.410457860304, -0.6790558666943),
    ),
    (("centred", 256, 100, 0.25, 3, -7), (-9.23454511373, -5.771345747337e-4, -0.9997312299992)),
    (("centred", 256, 1, -1, 10, -7), (-16.23441072572, 8.082955382112e-12, -0.9999999999999)),
    (("centred", 256, 200, 0.125, 30, -7), (-36.23441072572, 1.942314274569e-27, -1.0)),
    (("centred", 256, 128, 1000, -7.5, -7), (-1.096624557568e6, -1096.633158428, 0.0)),
    (
        ("centred", 256, 255, 10000, 30, -7),
        (-0.6931471800921, 4.678811482231e-14, -4.678345435911e-10),
    ),
    (("unit", 256, 77, 0.3125, -4.5, -7), (-2.620004004546, -36.96304829475, -0.6365154020671)),
    (("unit", 256, 0, 0.015625, -3.5, -7), (-0.9058910339527, -19.730796095, 0.2312202667383)),
    (("symmetric", 256, 255, 0.984375, -5, -7), (-1.432287270264, 112.9777091648, 0.8826383528496)),
    (("symmetric", 256, 100, -0.25, -4.25, -7), (-3.222874061414, 58.79600228097, 1.053083501826)),
    (("centred", 2, 1, 0.375, -1, -7), (-0.3080928614893, 0.7207603754887, -0.2702851408083)),
    (("centred", 32, 17, 0.0625, -2.5, -7), (-1.681567183946, 2.416546852077, -0.8950039573432)),
    (
        ("unit", 65536, 40000, 0.609375, -8.5, None),
        (-7.44300506249, 4837.378735673, 3.760462273772),
    ),
]

# bins, then for each kind of parameter its values and gradients for components 0, 1, ...; log P
MIXTURES = {
    "grey": (
        [90],
        -2.945223722324,
        [
            ([0.5, -1, 0.25], [-0.1903117017201, -0.1094524283308, 0.2997641300509]),
            ([-0.25, 0.5, -0.3125], [-2.581405003256, -8.488450278087e-3, 27.07170824424]),
            ([-3, -1.5, -4.25], [-0.1951668535319, 4.73561233976e-3, -0.1907815161488]),
        ],
    ),
    "grey, last bin": (
        [255],
        -4.462696585446,
        [
            ([0, 2, -3], [0.3698678266262, -0.8756005950631, 0.5057327684368]),
            ([0.75, 0.5, 1.25], [5.666793342148, 3.713931517804e-83, 6.544765834675e-119]),
            ([-2.5, -6, -8], [1.394475616548, 1.842401321577e-83, 0.0]),
        ],
    ),
    "colour": (
        [150, 140, 30],
        -13.41694294386,
        [
            ([0.25, -0.5], [-0.07520103314708, 0.07520103314708]),
            ([0.125, 0.25], [0.8383954934736, -4.992222898842]),
            ([-2, -3], [-0.5607493936081, -0.02902202291003]),
            ([0.5, -0.25], [-0.2787851342227, 0.1574062684465]),
            ([0.0625, -0.125], [-2.008757048996, 0.948888047527]),
            ([-2.5, -1.5], [-0.511374701722, -0.1433683500549]),
            ([-0.75, 0.125], [-1.205489426228, -0.1980122011351]),
            ([-0.5, -0.75], [-11.45033397342, -1.139692974745]),
            ([-3, -2], [1.417477856777, -0.2691253685164]),
            ([0.25, 1], [-1.055243525373, -0.04692566732459]),
        ],
    ),
    "colour, open bins": (
        [0, 255, 128],
        -8.52678957496,
        [
            ([-1.5, 1], [-0.04730908072358, 0.04730908072358]),
            ([-0.875, -1.25], [-0.9285708904182, -0.9534050475341]),
            ([-3.5, -2], [0.11242990683, -0.2420901052072]),
            ([0.5, -2], [-0.02878394675235, -1.02406764036e-221]),
            ([1.5, 0.5], [0.03659994878973, 1.449477260157e-220]),
            ([-1, -8], [-1.530039315233e-3, 0.0]),
            ([-0.25, 0], [-0.1335174289899, 11.77501578699]),
            ([0, 0.25], [0.1420375743632, -11.77501578699]),
            ([-2, -2.5], [2.85681892897e-3, 4.809319806278]),
            ([-0.5, 0.25], [0.111705128354, -11.0686896847]),
        ],
    ),
    "colour, far tail": (
        [10, 200, 255],
        -294.6286734532,
        [
            ([3], [0.0]),
            ([0.5], [-54.59815003314]),
            ([-4], [76.59978261663]),
            ([0.25], [-128.5685675645]),
            ([-0.5], [148.4131591026]),
            ([-5], [190.986171887]),
            ([-0.5], [-14.55730537206]),
            ([-1], [20.08553692262]),
            ([-3], [24.28427033057]),
            ([0.75], [6.813718472796]),
        ],
    ),
}

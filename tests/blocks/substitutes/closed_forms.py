"""The paper's substitutes from the formulas of section 3.1 and appendix A: N in, C out, kernel k, M = C / b."""

import re

from nni_blockswap.blocks.site import Site


def layers(name: str, site: Site) -> list[tuple[int, int, int, int]]:
    """(C_in, C_out, k, groups) of each convolution of a branch in canonical spelling."""
    n, c, k = site.in_channels, site.out_channels, site.kernel
    kind, *numbers = re.findall(r"[A-Z]+(?:/\d+)?|\d+", name)
    if kind == "S":
        return [(n, c, k, 1), (c, c, k, 1)]
    if kind == "G":
        divisor = int(numbers[0].partition("/")[2] or 1) if numbers[0].startswith("N") else None
        first, second = (int(numbers[0]),) * 2 if divisor is None else (n // divisor, c // divisor)
        return [(n, n, k, first), (n, c, 1, 1), (c, c, k, second), (c, c, 1, 1)]
    m = c // int(numbers[0])
    return [(n, m, 1, 1), (m, m, k, int(numbers[1]) if kind == "BG" else 1), (m, c, 1, 1)]


def params(name: str, site: Site) -> int:
    """Weights, and scale and shift of BN on what enters each convolution but the first."""
    found = layers(name, site)
    return sum(k * k * a // g * b for a, b, k, g in found) + sum(2 * a for a, *_ in found[1:])


def macs(name: str, site: Site, side: int) -> int:
    """Weights times positions; the first convolution with a kernel strides."""
    total, is_strided = 0, False
    for a, b, k, g in layers(name, site):
        if k > 1 and not is_strided:
            side, is_strided = -(-side // site.stride), True
        total += k * k * a // g * b * side**2
    return total

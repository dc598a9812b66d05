"""Numbers and bytes in words, for the lines of a command."""


def short(number: float, kilo: int = 1000) -> str:
    """A number with the largest unit of T, G, M and k (the powers of `kilo`) that it reaches, such as `1.50 G`."""
    power = next((n for n in (4, 3, 2, 1) if number >= kilo**n), 0)
    return f"{number / kilo**power:.2f} {' kMGT'[power]}" if power else f"{number:.0f} "


def as_bytes(count: int) -> str:
    """A number of bytes, such as `1.50 GiB`."""
    return f"{count} bytes" if count < 1024 else f"{short(count, 1024).upper()}iB"

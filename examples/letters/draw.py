"""Draw the letters A to J, 100 x 100 pixels, black on white: 25 of each for three devices, and some held out.

    python draw.py            # into data/client-1 ... client-3 and data/test, by letter

Each device writes in its own hand: another family of fonts (those that come with matplotlib), and each picture turned,
shifted, scaled, and sprinkled with noise. The held-out pictures are in all hands.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
LETTERS = "ABCDEFGHIJ"
SIZE = 100
A_DEVICE = 25  # pictures of each letter
HELD_OUT = 20
HANDS = {
    "client-1": ("DejaVuSans.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-Bold.ttf"),
    "client-2": ("DejaVuSerif.ttf", "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf"),
    "client-3": ("DejaVuSansMono.ttf", "DejaVuSansMono-Oblique.ttf", "cmtt10.ttf"),
}


def draw(letter: str, font: str, rng: np.random.Generator) -> Image.Image:
    """One picture."""
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / font
    typeface = ImageFont.truetype(str(path), size=int(rng.integers(52, 76)))
    ink = Image.new("L", (SIZE, SIZE), 0)
    centre = SIZE / 2 + rng.integers(-6, 7, size=2)
    ImageDraw.Draw(ink).text(
        (float(centre[0]), float(centre[1])), letter, font=typeface, fill=255, anchor="mm"
    )
    turned = ink.rotate(float(rng.uniform(-12, 12)), resample=Image.Resampling.BILINEAR)
    noisy = np.asarray(turned, dtype=np.float64) + rng.normal(0, 22, (SIZE, SIZE))
    return Image.fromarray(255 - np.clip(noisy, 0, 255).astype(np.uint8))


def write(folder: Path, fonts: tuple[str, ...], count: int, rng: np.random.Generator) -> None:
    """`count` pictures of each letter."""
    for letter in LETTERS:
        (folder / letter).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw(letter, fonts[number % len(fonts)], rng).save(folder / letter / f"{number:03}.png")


def main(out: Path = HERE / "data") -> None:
    """All pictures."""
    for seed, (name, fonts) in enumerate(HANDS.items()):
        write(out / name, fonts, A_DEVICE, np.random.default_rng(seed))
    every = tuple(font for fonts in HANDS.values() for font in fonts)
    write(out / "test", every, HELD_OUT, np.random.default_rng(99))
    print(f"wrote {len(LETTERS) * (A_DEVICE * len(HANDS) + HELD_OUT)} pictures into {out}")


if __name__ == "__main__":
    main()

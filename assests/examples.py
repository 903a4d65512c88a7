"""Draw three CIFAR-10 classes from flat shapes, for the prediction in README.md."""

from PIL import Image, ImageDraw, ImageFilter

SIDE = 512
RED, BLACK, WHITE, SILVER, GLASS = "#c9362c", "#20242b", "#f0f0ec", "#b9c0c9", "#40536b"


def sky(top, bottom):
    """Return an image that fades from the colour `top` to `bottom`, and an ImageDraw for it."""
    mask = Image.linear_gradient("L").resize((SIDE, SIDE))
    colours = [Image.new("RGB", (SIDE, SIDE), colour) for colour in (bottom, top)]
    image = Image.composite(*colours, mask)
    return image, ImageDraw.Draw(image)


def airplane():
    image, draw = sky("#5b8fd0", "#bcd7f2")
    fuselage = [70, 300, 120, 262, 400, 222, 455, 228, 470, 244, 440, 262, 150, 312, 85, 315]
    draw.polygon(fuselage, WHITE)
    draw.polygon([70, 300, 45, 205, 85, 200, 135, 268], RED)
    draw.polygon([230, 272, 170, 395, 215, 390, 330, 262], SILVER)
    draw.polygon([260, 242, 235, 165, 262, 163, 335, 236], SILVER)
    draw.polygon([60, 296, 30, 330, 60, 330, 120, 300], SILVER)
    for x in range(200, 410, 30):
        draw.ellipse([x, 252 - 4 * (x - 200) / 30, x + 10, 262 - 4 * (x - 200) / 30], GLASS)
    draw.polygon([432, 228, 462, 236, 468, 243, 436, 242], GLASS)
    return image


def ship():
    image, draw = sky("#a9c8e8", "#dbe8f3")
    draw.rectangle([0, 330, SIDE, SIDE], "#1f5a8a")
    draw.polygon([40, 270, 480, 262, 430, 352, 95, 352], "#7c1f1f")
    draw.polygon([40, 270, 480, 262, 470, 285, 50, 292], BLACK)
    draw.rectangle([130, 205, 330, 268], WHITE)
    draw.rectangle([160, 160, 290, 206], WHITE)
    draw.rectangle([190, 95, 235, 162], RED)
    for x in range(145, 310, 30):
        draw.rectangle([x, 225, x + 15, 240], GLASS)
    draw.line([390, 262, 390, 130], BLACK, 6)
    draw.line([390, 140, 330, 205], BLACK, 3)
    return image


def truck():
    image, draw = sky("#c6d9ea", "#eef2f5")
    draw.rectangle([0, 370, SIDE, SIDE], "#7d7f80")
    draw.rectangle([0, 362, SIDE, 374], "#5f8a4a")
    draw.rectangle([40, 140, 330, 360], WHITE)
    draw.rectangle([40, 140, 330, 152], RED)
    draw.rectangle([40, 340, 460, 372], BLACK)
    draw.polygon([336, 200, 415, 200, 462, 275, 470, 362, 336, 362], RED)
    draw.polygon([352, 216, 406, 216, 440, 275, 352, 275], GLASS)
    for x in 110, 190, 400:
        draw.ellipse([x - 42, 338, x + 42, 422], BLACK)
        draw.ellipse([x - 18, 362, x + 18, 398], SILVER)
    return image


EXAMPLES = {draw.__name__: draw for draw in (airplane, ship, truck)}


def draw_example(name):
    """Return the drawing of a class, 128x128 pixels, slightly blurred like a photo."""
    return EXAMPLES[name]().filter(ImageFilter.GaussianBlur(1.2)).resize((SIDE // 4, SIDE // 4))

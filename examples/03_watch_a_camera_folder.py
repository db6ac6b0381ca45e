"""A camera over a conveyor belt sorts parts, and learns from the pictures that keep coming in.

    python examples/03_watch_a_camera_folder.py

The camera's folder holds one picture a file, in one folder a label: bolt, nut, washer. While a small vision transformer
of random weights is trained on them, more pictures arrive, and each round trains on all that are there by then. Prints
how the folder and the model's accuracy grow, and what the last model says of three parts that it has not seen.
"""

import random
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from coordinator.local import local_coordinator
from edge_sdk import Agent

PARTS = ("bolt", "nut", "washer")
chance = random.Random(0)


def photograph(part: str) -> Image.Image:
    """Grey metal somewhere on a dark belt, 32 pixels a side."""
    grey, belt = chance.randint(150, 230), chance.randint(20, 70)
    picture = Image.new("RGB", (32, 32), (belt, belt, belt + 10))
    draw, x, y, r = ImageDraw.Draw(picture), chance.randint(13, 18), chance.randint(13, 18), chance.randint(9, 11)
    if part == "bolt":
        draw.rectangle((x - r, y - 5, x - r + 5, y + 5), (grey, grey, grey))
        draw.rectangle((x - r, y - 2, x + r, y + 2), (grey, grey, grey))
    elif part == "nut":
        draw.regular_polygon((x, y, r), 6, chance.randint(0, 60), (grey, grey, grey))
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), (belt, belt, belt))
    else:
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(grey, grey, grey), width=3)
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def take_pictures(camera: Path, count: int) -> Path:
    """``count`` more of each part."""
    for part in PARTS:
        (camera / part).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            photograph(part).save(camera / part / f"{time.time_ns()}.png")
    return camera


with tempfile.TemporaryDirectory() as folder, local_coordinator(Path(folder, "fleet")) as server:
    model, few, test = Path(folder, "model"), Path(folder, "few"), Path(folder, "test")
    take_pictures(few, 10), take_pictures(test, 50)
    server.command("model", "new", model, few, "--image-size", "32", "--layers", "2")
    options = ("--rounds", "3", "--learning-rate", "2e-3", "--epochs", "8")
    server.command("task", "create", "parts", "--model", model, "--calibration", few, "--test", test, *options)

    camera = take_pictures(Path(folder, "camera"), 30)
    settings = {"profile": "raspberry-pi-zero-2-w", "root": server.root, "image_size": 32}
    with Agent("belt", server.broker, camera, state_dir=Path(folder, "belt"), **settings) as agent:
        while not server.is_done("parts"):
            take_pictures(camera, 1)
            time.sleep(0.5)
        print(f"the folder grew from 90 to {len(list(camera.glob('*/*.png')))} pictures")
        for row in server.rounds("parts"):
            print(f"round {row['round']}: {row['full']:.0%} of the parts are told apart")
        answers = agent.predict(np.stack([np.asarray(photograph(part)) for part in PARTS]))
        for part, prediction in zip(PARTS, answers, strict=True):
            print(f"a {part}: the camera says {prediction.label}, {prediction.probability:.0%}")

"""Three people's watches learn together to tell what their wearer does, and no movement leaves a watch.

    python examples/04_recognise_activities.py

Each watch owns a few minutes of its own wearer's acceleration and rotation (HAPT, recorded at 50 Hz by the University
of Genoa; `make demo` installs it). The coordinator begins with a small transformer of random weights; the watches train
it on their windows and send back only what changed. Prints how often the model is right about people whom no watch has
met, round by round, and then what the first watch says of a few moments of its wearer's.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from coordinator.demo.motion import packaged_motion
from coordinator.local import local_coordinator
from edge_sdk import Agent
from edge_sdk.data import write_examples

WEARERS = {"watch-anna": 1, "watch-ben": 2, "watch-chloe": 3}
motion = packaged_motion()

with tempfile.TemporaryDirectory() as folder, local_coordinator(Path(folder, "fleet")) as server, ExitStack() as stack:
    # the operator owns recordings of two volunteers, to begin with, and of four others, to judge by
    model, few = Path(folder, "model"), write_examples(Path(folder, "few"), motion.of(25, 26))
    test = write_examples(Path(folder, "test"), motion.of(27, 28, 29, 30))
    server.command("model", "new", model, few)
    options = ("--rounds", "3", "--min-devices", "3", "--learning-rate", "2e-3", "--epochs", "4")
    server.command("task", "create", "activities", "--model", model, "--calibration", few, "--test", test, *options)

    watches = [
        Agent(
            name,
            server.broker,
            motion.of(wearer),
            state_dir=Path(folder, name),
            profile="android-low-end",
            root=server.root,
        )
        for name, wearer in WEARERS.items()
    ]
    for watch in watches:
        stack.enter_context(watch)
    server.wait_for("activities")
    for row in server.rounds("activities"):
        print(f"round {row['round']}: {row['updates']} watches took part; right about strangers: {row['full']:.0%}")
    moments = motion.of(1).take(range(0, 300, 60))
    for prediction, activity in zip(watches[0].predict(moments.values), moments.labels, strict=True):
        print(f"{activity}: the watch says {prediction.label}, {prediction.probability:.0%}")

"""A watch loses its network in the middle of a round, runs flat, and comes back: nothing that it did is lost.

    python examples/06_go_offline.py

The watch has its first model and is training for the next when broker and coordinator are gone. It trains to the end
all the same, keeps the update on its disk, and goes on answering from the model it has, also after it was switched off.
Once the network is back it sends that update, which closes the round, and takes part in the next. Prints each of these
steps. (The movements are those of example 04.)
"""

import tempfile
import time
from pathlib import Path

from coordinator.demo.motion import packaged_motion
from coordinator.local import local_coordinator
from edge_sdk import Agent
from edge_sdk.data import write_examples

motion = packaged_motion()
stranger = motion.of(2)


def switch_on(broker: str) -> Agent:
    """The watch of two people who take turns, with all that it kept when it was switched off."""
    state, root = Path(folder, "watch"), Path(folder, "fleet", "root.json")
    return Agent("watch", broker, motion.of(1, 3), state_dir=state, profile="android-low-end", root=root)


def answer(watch: Agent) -> None:
    """From the model that the watch runs now."""
    answers = [prediction.label for prediction in watch.predict(stranger.values)]
    right = sum(map(str.__eq__, answers, stranger.labels)) / len(answers)
    print(f"    it answers from release {watch.status.release}, {right:.0%} right")


with tempfile.TemporaryDirectory() as folder:
    model, few = Path(folder, "model"), write_examples(Path(folder, "few"), motion.of(25))
    test = write_examples(Path(folder, "test"), motion.of(27))
    data = ("--model", model, "--calibration", few, "--test", test, "--learning-rate", "2e-3")
    with local_coordinator(Path(folder, "fleet")) as server:
        server.command("model", "new", model, few)
        server.command("task", "create", "monday", *data, "--rounds", "1")
        watch = switch_on(server.broker)
        watch.start()
        server.wait_for("monday")
        print("monday's round is over, the watch has a model")
        answer(watch)
        server.command("task", "create", "tuesday", *data, "--rounds", "2", "--epochs", "4")
        while watch.status.phase != "training":
            time.sleep(0.05)

    print("the network is gone while it trains for tuesday's first round")
    answer(watch)
    while watch.status.phase == "training":
        time.sleep(0.05)
    watch.stop()
    print("it has trained to the end and is switched off; on again, still offline")
    with local_coordinator(Path(folder, "fleet")) as server, switch_on(server.broker) as watch:
        answer(watch)
        trained = set()
        while not server.is_done("tuesday"):
            if watch.status.phase == "training":
                trained.add(watch.status.round)
            time.sleep(0.05)
        print("the network is back; since then it has trained for round", *trained, "only")
        for row in server.rounds("tuesday"):
            print(f"tuesday's round {row['round']}: {row['updates']} update from {row['offers']} device")
        answer(watch)

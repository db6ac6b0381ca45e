"""A phone sorts news, its user disagrees, and the next model does it the user's way, with and without a network.

    python examples/02_learn_from_corrections.py

The phone first gets a model that files articles about video games under "tech", as their publisher does. Its user wants
them under "entertainment" and says so thirty times. The phone trains on that, and the model that comes back has learned
it: asked about games that nobody has corrected, it files most as the user wants. Prints how many of them, and how many
other articles are right: before, after, and with the network gone.

The articles are BBC News and the model is MiniLM; `make demo` installs both.
"""

import random
import tempfile
from pathlib import Path

from coordinator.demo.inputs import packaged_model, packaged_texts
from coordinator.local import LocalCoordinator, local_coordinator
from edge_sdk import Agent
from edge_sdk.data import TextExamples, write_examples


def train(server: LocalCoordinator, task: str, model: Path, *options: str) -> None:
    """One round of a new task, and the release of its result."""
    data = ("--calibration", Path(folder, "few.jsonl"), "--test", Path(folder, "test.jsonl"))
    server.command("task", "create", task, "--model", model, *data, "--rounds", "1", *options)
    server.wait_for(task)


def as_wanted() -> str:
    """How the phone files what it has not been told about."""
    answers = [prediction.label for prediction in phone.predict(unseen)]
    texts, labels = zip(*others[-50:], strict=True)
    right = sum(prediction.label == label for prediction, label in zip(phone.predict(texts), labels, strict=True))
    return f"{answers.count('entertainment')} of 20 about games are as the user wants, {right} of 50 others right"


articles = packaged_texts()
games = [text for text in articles.texts if "gamers" in text or "video game" in text or "nintendo" in text.lower()]
corrected, unseen = games[:30], games[30:50]
others = [article for article in zip(articles.texts, articles.labels, strict=True) if article[0] not in games]
random.Random(0).shuffle(others)

with tempfile.TemporaryDirectory() as folder:
    for name, chosen in {"few": others[:64], "test": others[64:128]}.items():
        texts, labels = zip(*chosen, strict=True)
        write_examples(Path(folder, name), TextExamples(texts, labels))

    with local_coordinator(Path(folder, "fleet")) as server:
        phone = Agent(
            "phone",
            server.broker,
            others[200:320],
            state_dir=Path(folder, "phone"),
            profile="android-mid-range",
            root=server.root,
        )
        with phone:
            train(server, "sections", packaged_model())
            print("before:", as_wanted())
            for text in corrected:
                phone.learn(text, "entertainment")
            server.command("model", "save", "sections", Path(folder, "model"))
            train(server, "sections-2", Path(folder, "model"), "--epochs", "2", "--learning-rate", "2e-4")
            print("after: ", as_wanted())
    print("offline:", as_wanted())

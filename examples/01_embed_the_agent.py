"""An application with an agent inside: it learns from what the device has, and answers with the newest model.

python examples/01_embed_the_agent.py mqtt://127.0.0.1:1883 my-texts.csv fleet/root.json "a text to classify"
"""

import sys
import threading
from pathlib import Path

from edge_sdk import Agent

broker, data, root, question = sys.argv[1:]
arrived = threading.Event()
with Agent("my-app", broker, data, root=Path(root), on_model=lambda _: arrived.set()) as agent:
    while not arrived.wait(timeout=2):
        print(agent.status)
    print(agent.predict([question])[0])

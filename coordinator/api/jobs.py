"""Heavy work for the API, in a process of its own, whose memory ends with it. The API itself never imports torch.

The process reads one job from its input as a line of JSON, and answers with JSON. If its input is closed, which also
happens if the API is killed, it ends and deletes what it has made.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from threading import Thread

import msgspec

from coordinator.backup import back_up
from coordinator.config import CoordinatorConfig
from coordinator.delivery.creating import Wanted, create_release
from coordinator.doctor.examination import examine_coordinator
from coordinator.doctor.patient import Patient
from coordinator.rounds.tasks import save_version
from coordinator.store.opening import open_store
from edge_sdk.diagnosis.findings import as_json
from edge_sdk.errors import ConfigurationError, DataFormatError, ModelFormatError, RaffmError
from edge_sdk.transport.blob_folder import BlobFolder

MADE = "made.tar"
"""The name of the file that a job makes in its ``folder``."""


class _Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A job on a state folder; it makes its files in ``folder``, which is deleted with them."""

    state_dir: str
    folder: str | None = None


class SaveModel(_Job, frozen=True, kw_only=True):
    """Save a version as an archive of a Hugging Face or PEFT folder; the result is its number."""

    task: str
    version: int | None

    def do(self) -> int:
        """Raises as :func:`save_version`."""
        folder, state_dir = Path(self.folder or ""), Path(self.state_dir)
        blobs = BlobFolder(CoordinatorConfig(state_dir=state_dir, broker="").blob_dir)
        with closing(open_store(state_dir)) as store:
            number = save_version(store, blobs, self.task, folder / "model", self.version)
        with tarfile.open(folder / MADE, "x:") as archive:
            archive.add(folder / "model", f"{self.task}-{number}", filter=_nobodys)
        return number


class BackUp(_Job, frozen=True, kw_only=True):
    """Back up the coordinator's whole state in one file; the result is the number of blobs in it."""

    def do(self) -> int:
        """Raises as :func:`back_up`."""
        return back_up(Path(self.state_dir), Path(self.folder or "") / MADE)


class MakeRelease(_Job, frozen=True, kw_only=True):
    """Create a release; the result is its number."""

    wanted: Wanted
    who: str

    def do(self) -> int:
        """Raises as :func:`create_release`."""
        state_dir = Path(self.state_dir)
        with closing(open_store(state_dir)) as store:
            return create_release(store, state_dir, self.wanted, time.time(), self.who, lambda _: None)


class Examine(_Job, frozen=True, kw_only=True):
    """Run the doctor; the result is its findings as JSON."""

    all_blobs: bool

    def do(self) -> dict[str, object]:
        """Never raises: whatever prevents a check is itself a finding."""
        return as_json(examine_coordinator(Patient(Path(self.state_dir), all_blobs=self.all_blobs)))


Job = SaveModel | BackUp | MakeRelease | Examine


class Answer(msgspec.Struct, frozen=True):
    """The result of a job, or why it failed; ``is_asked_wrong`` if the caller can mend that by asking differently."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str | None = None
    is_asked_wrong: bool = False


_jobs = msgspec.json.Decoder(Job)
_ASKED_WRONG = (ConfigurationError, DataFormatError, ModelFormatError)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _answer_to(job: Job) -> Answer:
    try:
        with redirect_stdout(sys.stderr):
            return Answer(msgspec.Raw(msgspec.json.encode(job.do())))
    except RaffmError as error:
        return Answer(error=str(error), is_asked_wrong=isinstance(error, _ASKED_WRONG))


def _end_with_input(job: Job) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    if job.folder is not None:
        shutil.rmtree(job.folder, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Do the one job that comes on standard input."""
    job = _jobs.decode(sys.stdin.buffer.readline())
    Thread(target=_end_with_input, args=(job,), daemon=True).start()
    sys.stdout.buffer.write(msgspec.json.encode(_answer_to(job)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

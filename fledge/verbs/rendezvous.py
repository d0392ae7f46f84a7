"""How processes of one machine find each other: by a file in a folder of their own, so that nothing listens on the network.

torchrun's own rendezvous is a server on every address of the machine that asks nobody who they are, and what reaches it can stop or mislead
a run. What is left are gloo's connections, on the loopback address, and NCCL's. Several machines are started with torchrun itself, which
listens where one tells it to.
"""

from __future__ import annotations

from pathlib import Path

from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

BACKEND = "fledge"


class FileRendezvous(RendezvousHandler):
    """The meeting of one agent with itself; its processes meet by a file of their own, see `training.parallel`."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._run_id = run_id
        self._store = FileStore(str(folder / "agent"), 1)

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        # An address that is handed to the processes and that nobody listens at.
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def arguments(folder: Path, processes: int) -> list[str]:
    """What tells torchrun to start so many processes that meet in a folder."""
    rendezvous_handler_registry.register(BACKEND, _create)
    place = [f"--rdzv-backend={BACKEND}", f"--rdzv-endpoint={folder}", "--local-addr=127.0.0.1"]
    return [*place, "--nnodes=1", f"--nproc-per-node={processes}"]


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return FileRendezvous(Path(parameters.endpoint), parameters.run_id)

"""The backup engine: `backup`, `restore`, `verify` and `list_generations` over the ports of `nas_agent/ports.py`.

Async at the edge (store calls), threads inside (reading, hashing, compressing, encrypting release the GIL).
Command line, keys on disk, and file-system access are elsewhere in `nas_agent/`.
"""

from nas_agent.engine.backup import BackupOptions, BackupResult, backup
from nas_agent.engine.restore import RestoreResult, restore, verify
from nas_agent.engine.vault_reader import GenerationView, list_generations

__all__ = [
    "BackupOptions",
    "BackupResult",
    "GenerationView",
    "RestoreResult",
    "backup",
    "list_generations",
    "restore",
    "verify",
]

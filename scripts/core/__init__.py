"""Settings, paths, errors, the log and the machine: shared by all packages, and quick to import."""

from scripts.core.command_line import parse_command_line
from scripts.core.config import Config
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.system import ensure_single_instance, worker_init_fn

__all__ = ["Config", "RunPaths", "ensure_single_instance", "log", "parse_command_line", "worker_init_fn"]

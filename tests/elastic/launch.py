"""horovodrun that looks for new hosts ten times a second, and starts with a single host."""

from __future__ import annotations

import sys
from unittest import mock

from horovod.runner.launch import run_commandline

if __name__ == "__main__":
    with (
        mock.patch("horovod.runner.elastic.driver.DISCOVER_HOSTS_FREQUENCY_SECS", 0.1),
        mock.patch("horovod.runner.gloo_run._get_min_start_hosts", return_value=1),
    ):
        sys.exit(run_commandline())

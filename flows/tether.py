"""Run a command that ends when the process that started it ends, however that one ended.

``python flows/tether.py PARENT COMMAND ...`` asks the kernel for SIGTERM at the parent's death and
becomes the command: a flow that was killed with SIGKILL leaves no server behind. Linux; elsewhere
it only becomes the command. A file to be run by its path: it imports nothing of the project.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Become the command ``argv[1:]``, tied to the process ``argv[0]``."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(argv[0]):  # it died before it could be asked for
            sys.exit(1)
    os.execvp(argv[1], argv[1:])  # noqa: S606  (there is no shell to be wanted)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Prefect over DVC: when to run, what to see, which limits. What to run is DVC's to know.

Read in this order:

* ``dvc.py``     all that is asked of DVC, and the only module that asks; ``dvc_files.py`` its
                 lock file and params.yaml, read once and written where they changed
* ``build.py``   the flow: DVC's graph as tasks, one process per stage that changed
* ``plan.py``    which stages may start; pure
* ``process.py`` a command in its own process group: its output line by line, and a clean end
* ``ui.py``      the Prefect server on this machine; ``tether.py`` ends it with its flow
* ``retrain.py`` the flow on a schedule; ``policy.py`` its section of params.yaml, ``sources.py``
                 what was dropped, ``drift.py`` whether it is worth it, ``evidence.py`` and
                 ``latency.py`` what both revisions show, ``gate.py`` whether it may (drift and
                 gate are pure), ``reasons.py`` both as Markdown
* ``worktree.py`` where it works; ``promote.py`` what is in production, and back
* ``deploy.py``  server, work pool, schedules; ``heartbeat.py`` runs that were killed, who is told
* ``report.py``  the leaderboard from what the stages wrote; ``page.py`` and ``svg.py`` draw it

Settings are in ``prefect.toml``. Nothing here computes a result, and no stage knows of it.
"""

import os
from pathlib import Path

for _switch in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS"):
    os.environ.setdefault(_switch, "1")
if Path("prefect.toml").is_file():
    Path(".quarry").mkdir(exist_ok=True)  # Prefect makes the last folder of its home only
